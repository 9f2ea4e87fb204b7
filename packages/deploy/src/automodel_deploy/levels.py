"""Optimisation levels: what each of them does to a trained model before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from automodel import InputError

Level = Literal["O0", "O1", "O2", "O3"]
ROUNDING = ("O2", "O3")
FOR_SERVING = {"use_cache": True, "output_router_logits": False}
"""Settings of a model's configuration that training may have changed, and what serving needs."""


def strip(module: Any) -> None:
    """Take from a model, in place, what only training needed: this is what O1 is, and what O2 and O3 begin with.

    Tensors that the model's class in transformers has no place for are dropped, and settings of training turned back.

    Args:
        module: a transformers model on the CPU, adapters merged.
    """
    _drop_unknown_tensors(module)
    for config in (module.config, module.config.get_text_config(), module.generation_config):
        for name, value in FOR_SERVING.items():
            if hasattr(config, name):
                setattr(config, name, value)


def check(module: Any, level: Level) -> None:
    """Check that a model can have a level.

    Raises:
        InputError: its weights are quantised, so that they have no other data type.
    """
    if level in ROUNDING and hasattr(module.config, "quantization_config"):
        raise InputError(
            f"this model is quantised already, so optimization_level {level} cannot change its weights: export it "
            "with O0 or O1"
        )


def rounded(directory: Path, loader: Any, options: dict[str, Any], level: Level, dtype: str) -> Any:
    """Load a model as O2 or O3 has it.

    O2 is the model in the data type of serving; modules that transformers keeps in float32 stay so. In O3 also the
    weights of linear layers, but not of the output head, are int8 with one scale for each row (torchao's
    `Int8WeightOnlyConfig`).

    Args:
        directory: the stripped model's safetensors files.
        loader: the auto class of transformers that loads it.
        options: further arguments of `from_pretrained`.
        level: O2 or O3.
        dtype: of serving.
    """
    quantization = _weight_only() if level == "O3" else None
    return loader.from_pretrained(
        str(directory), dtype=getattr(torch, dtype), quantization_config=quantization, **options
    ).eval()


def auto_class(module: Any) -> Any:
    """The class of transformers that loads such a model from a directory."""
    causal = type(module).__name__.endswith("ForCausalLM")
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText


def attention(module: Any) -> str:
    """The kind of attention that a model computes; others round otherwise."""
    # private (transformers 5.23): there is no other way to read it; the tests of equal logits tell if it goes
    name: str = module.config._attn_implementation
    return name


def is_remote(module: Any) -> bool:
    """Whether the model's code came with it; running it was allowed when the model was loaded."""
    remote: bool = module.is_remote_code()
    return remote


def _weight_only() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig  # an extra, and seconds to import

    return transformers.TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def _drop_unknown_tensors(module: Any) -> None:
    """Delete parameters and buffers that the model's class in transformers has no place for."""
    own = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("transformers"))
    with torch.device("meta"):
        known = own(module.config).state_dict().keys()
    for name in module.state_dict().keys() - known:
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)
