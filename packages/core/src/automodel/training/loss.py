"""Loss functions, as sums over label tokens: the step divides by the tokens of the whole global batch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from automodel.interfaces import Loss


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of the next token, in float32 whatever the model's dtype.

    Args:
        label_smoothing: share of the target probability spread over the vocabulary.
    """

    def loss(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum", label_smoothing=label_smoothing)

    return loss
