"""The model of a checkpoint, for whoever uses it after training: to merge, export or serve it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import nn

from automodel.checkpoint.state import fingerprint
from automodel.errors import InputError
from automodel.interfaces import ModelSource
from automodel.notices import notice
from automodel.recipe import Recipe, load_recipe
from automodel.training.rng import Seeds

NEEDED = ("model", "peft", "rng")
"""The sections of a recipe that a model is made from; a plugin of another section need not be installed."""


@dataclass(frozen=True)
class Base:
    """The model that a run began with, on the CPU in its own data type."""

    source: ModelSource
    module: nn.Module


def recipe_of(
    checkpoint: Path, allow_targets: Sequence[str] = (), *, sections: Sequence[str] = NEEDED, **overrides: Any
) -> Recipe:
    """The recipe that a checkpoint was made by, without the sections that are not needed for its model.

    Raises:
        InputError: what it names is not installed, or not allowed.
    """
    path = checkpoint / "recipe.yaml"
    written = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    without = {section: None for section in written if section not in sections}
    return load_recipe([path], without | overrides, allow_targets=allow_targets, needs=("model",))


def base_model(checkpoint: Path, *, location: str | None = None, allow_targets: Sequence[str] = ()) -> Base:
    """Build the model that the run of a checkpoint began with, or the same kind of model from another location.

    A quantised one is loaded as it was before quantisation.

    Raises:
        InputError: it cannot be built, or it is not the model that the run began with.
    """
    overrides = {"model.pretrained_model_name_or_path": location} if location is not None else {}
    recipe = recipe_of(checkpoint, allow_targets, sections=("model", "rng"), **overrides)
    target, seeds = recipe.target("model"), recipe.target("rng")
    assert target is not None and seeds is not None  # one is needed, the other has a default
    quantised = target.kwargs.get("quantization_config") is not None
    target = replace(target, kwargs={k: v for k, v in target.kwargs.items() if k != "quantization_config"})
    source: ModelSource = target.build()
    made: Seeds = seeds.build()
    made.apply()  # a model with random weights comes from its seed
    module = source.load_module(torch.device("cpu"))
    if quantised:
        notice(f"{checkpoint} was trained on {source.name} quantised; its weights before quantisation are used")
    elif not _is_trained_on(checkpoint, module):
        wrong = f"{source.name} is not the model that {checkpoint} was trained on: its weights differ"
        if location is None:
            raise InputError(f"{wrong}; give the right one with --base")
        notice(wrong)
    return Base(source, module)


def trained_model(checkpoint: Path, *, allow_targets: Sequence[str] = ()) -> tuple[nn.Module, Any]:
    """The model that a run has trained, adapters merged in the wider data type, and its tokenizer or processor.

    It is on the CPU in the data type of training.

    Raises:
        InputError: it cannot be built from the checkpoint's recipe.
    """
    directory = checkpoint / "model"
    if not directory.is_dir():
        raise InputError(f"{checkpoint} has no model/, since checkpoint.save_consolidated was false")
    recipe = recipe_of(checkpoint, allow_targets)
    target, peft = recipe.target("model"), recipe.target("peft")
    assert target is not None
    if peft is not None:
        module = peft.build().merge(base_model(checkpoint, allow_targets=allow_targets).module, directory)
    else:
        module = target.build().at(directory).load_module(torch.device("cpu"))
    return module.eval(), target.build().at(directory).load_processor()


def _is_trained_on(checkpoint: Path, module: nn.Module) -> bool:
    """Whether the weights are those that the run began with, where the checkpoint still knows them."""
    scalars = checkpoint / "state" / "trainer.json"
    if not scalars.exists():
        return True
    known: str = json.loads(scalars.read_text(encoding="utf-8"))["fingerprint"]
    return fingerprint(module.named_parameters()) == known
