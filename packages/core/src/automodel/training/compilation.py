"""Decoder layers compiled one by one: they are alike, so that one is compiled for all, unlike a whole model."""

from __future__ import annotations

from torch import nn

from automodel.errors import InputError


def compile_layers(module: nn.Module) -> None:
    """Compile each decoder layer, in place; names of parameters stay as they are.

    Lengths of sequences are symbols, so that a micro-batch of another length is not compiled again.

    Raises:
        InputError: the model does not say which of its modules are layers.
    """
    names = set(getattr(module, "_no_split_modules", None) or ())
    layers = [part for part in module.modules() if type(part).__name__ in names]
    if not layers:
        raise InputError("this model does not say which of its modules are layers (_no_split_modules)")
    for layer in layers:
        layer.compile(dynamic=True)
