"""Options of a model: data types and attention implementations by name, with the fallbacks that are told."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from automodel import InputError
from automodel.notices import notice
from automodel.suggest import did_you_mean

if TYPE_CHECKING:
    import torch

DTYPES = {
    "auto": "auto",
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float64": "float64",
}
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


def dtype_name(torch_dtype: str, dtype: str | None, default: str = "auto") -> str:
    """The name of the data type that a recipe asks for in either spelling: `auto`, `float32`, `bfloat16`, ...

    Raises:
        InputError: both spellings are given, or the name is not known.
    """
    if dtype is not None and torch_dtype != default:
        raise InputError(f"torch_dtype: {torch_dtype} and dtype: {dtype} are two spellings of one thing: give only one")
    wanted = str(dtype if dtype is not None else torch_dtype)
    name = wanted.removeprefix("torch.").lower()
    if name not in DTYPES:
        spelling = "torch_dtype" if dtype is None else "dtype"
        raise InputError(f"{spelling}: {wanted!r} is no data type for a model{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def check_attention(name: str | None) -> str:
    """Return the attention implementation that is asked for; None is `sdpa`.

    Raises:
        InputError: the name is not known.
    """
    if name is None:
        return "sdpa"
    if name not in ATTENTION and "/" not in name:  # owner/repository is a kernel on the Hub
        raise InputError(f"attn_implementation: {name!r} is not known{did_you_mean(name, ATTENTION)}")
    return name


def usable_attention(name: str, device: torch.device) -> str:
    """Return `name`, or `sdpa` with a notice where this machine cannot run it.

    Raises:
        InputError: it cannot run here and the run is strict.
    """
    if name in {"sdpa", "eager"}:
        return name
    reason = None
    if device.type == "cpu":
        reason = "it needs an accelerator and this run is on the CPU"
    elif name == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if not is_flash_attn_2_available():
            reason = "the package flash-attn is not installed or does not go with this device"
    if reason is None:
        return name
    notice(f"attn_implementation: {name} is not usable here ({reason}); sdpa is used instead")
    return "sdpa"


def apply_liger(module: Any, device: torch.device) -> None:
    """Put Liger's fused kernels into a loaded model, in place, or say why its plain kernels stay.

    Raises:
        InputError: they cannot run here and the run is strict.
    """
    reason = None
    if device.type == "cpu":
        reason = "Liger needs an accelerator and this run is on the CPU"
    elif importlib.util.find_spec("liger_kernel") is None:
        reason = "install automodel-huggingface[liger]"
    else:
        # Liger 0.8: private, but the only call that patches one model instead of a class, and the one that
        # transformers' Trainer makes. Its loss is left out: core computes the loss from the logits.
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        model_type = module.config.model_type
        if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN:
            _apply_liger_kernel_to_instance(model=module, fused_linear_cross_entropy=False, cross_entropy=False)
        else:
            reason = f"Liger has no kernels for model type {model_type}"
    if reason is not None:
        notice(f"use_liger_kernel: true is not usable here ({reason}); the model's plain kernels are used instead")
