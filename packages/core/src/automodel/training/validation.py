"""Validation: loss, token accuracy and exact match on held-out rows, from one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from automodel.errors import InputError
from automodel.interfaces import Loader, Loss
from automodel.training.collate import IGNORED_LABEL
from automodel.training.options import TrainingOptions
from automodel.training.step import label_logits


@torch.no_grad()
def validate(
    module: nn.Module, loader: Loader, loss_fn: Loss, options: TrainingOptions, device: torch.device
) -> dict[str, float]:
    """Return the metrics of one pass over `loader`: each one is named in the glossary of docs/training.md.

    `val_exact_match` is the share of rows whose label tokens are all the model's first choice. Given a right prefix
    greedy decoding takes just these tokens, so it is the share of rows that greedy generation answers letter by
    letter, without generating.

    Raises:
        InputError: no row has a label.
    """
    was_training = module.training
    module.eval()
    loss_sum, num_label_tokens, num_right_tokens, num_rows, num_right_rows = 0.0, 0, 0, 0, 0
    try:
        for batch in loader.micro_batches(epoch=0, start=0):
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=options.mixed_precision == "bf16"):
                logits_NV, targets_N = label_logits(module, on_device)
                loss_sum += float(loss_fn(logits_NV, targets_N))
            right_N = logits_NV.argmax(dim=-1) == targets_N
            row_N = _rows(on_device["labels"])
            labels_B = torch.bincount(row_N, minlength=len(batch["labels"]))
            right_B = torch.bincount(row_N[right_N], minlength=len(batch["labels"]))
            num_label_tokens += len(targets_N)
            num_right_tokens += int(right_N.sum())
            num_rows += int((labels_B > 0).sum())
            num_right_rows += int(((labels_B > 0) & (labels_B == right_B)).sum())
    finally:
        module.train(was_training)
    if not num_label_tokens:
        raise InputError("no row of the validation data set has a label")
    return {
        "val_loss": loss_sum / num_label_tokens,
        "val_token_accuracy": num_right_tokens / num_label_tokens,
        "val_exact_match": num_right_rows / num_rows,
        "val_rows": num_rows,
    }


def _rows(labels_BL: Tensor) -> Tensor:
    """The row of each label token (N), in the order of `label_logits`."""
    return (labels_BL[:, 1:] != IGNORED_LABEL).nonzero()[:, 0]
