"""Less memory for more time: activations that are computed again in the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from automodel.errors import InputError
from automodel.training.linear import ONEDNN_PRODUCT

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    *(() if ONEDNN_PRODUCT is None else (ONEDNN_PRODUCT.default,)),
}
"""What `selective` keeps: matrix products and attention, which take nearly all of the time."""


def checkpoint_activations(module: nn.Module, mode: Literal["full", "selective"]) -> None:
    """Compute the activations of each layer again in the backward pass: all, or all but matrix products and attention.

    Raises:
        InputError: the model cannot do this.
    """
    model: Any = module
    if not hasattr(model, "activation_checkpointing_enable"):
        raise InputError("this model has no activation_checkpointing_enable(), as transformers' models do")
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
