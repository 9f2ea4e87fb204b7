"""The base model of an adapter: from the recipe it was trained by, or by its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from automodel import InputError
from automodel.checkpoint.state import fingerprint
from automodel.notices import notice
from automodel.recipe import load_recipe
from ruamel.yaml import YAML

from automodel_peft_lora.checkpoints import ADAPTER_CONFIG, Checkpoint

NEEDED = ("model", "rng")
"""The sections of a recipe that a base model is made from; a plugin of another section need not be installed."""


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Args:
        name: what people call it.
        module: on the CPU, in its own data type.
        load_processor: loads its tokenizer or processor.
    """

    name: str
    module: Any
    load_processor: Callable[[], Any]


def base_from_recipe(found: Checkpoint, location: str | None, allow_targets: Sequence[str]) -> Base:
    """Build the model of a checkpoint's recipe, or the same kind of model from another location.

    Raises:
        InputError: it cannot be built, or it is not the model that the adapter was trained on.
    """
    assert found.recipe is not None
    sections = YAML(typ="safe", pure=True).load(found.recipe.read_text(encoding="utf-8"))
    overrides: dict[str, Any] = {section: None for section in sections if section not in NEEDED}
    if location is not None:
        overrides["model.pretrained_model_name_or_path"] = location
    recipe = load_recipe([found.recipe], overrides, allow_targets=allow_targets, needs=("model",))
    target, seeds = recipe.target("model"), recipe.target("rng")
    assert target is not None and seeds is not None  # one is needed, the other has a default
    quantised = target.kwargs.get("quantization_config") is not None
    target = replace(target, kwargs={k: v for k, v in target.kwargs.items() if k != "quantization_config"})
    source = target.build()
    seeds.build().apply()  # a model with random weights comes from its seed
    module = source.load_module(torch.device("cpu"))
    if quantised:
        notice(f"the adapter was trained on {source.name} quantised; it is merged into the weights before quantisation")
    elif not _is_trained_on(found, module):
        wrong = f"{source.name} is not the model that {found.adapter} was trained on: its weights differ"
        if location is None:
            raise InputError(f"{wrong}; give the right one with --base")
        notice(wrong)
    return Base(source.name, module, source.load_processor)


def base_from_hugging_face(found: Checkpoint, location: str | None) -> Base:
    """Load the model that an adapter names, or the one at `location`, by transformers.

    Raises:
        InputError: the adapter names none, or it cannot be loaded.
    """
    config = json.loads((found.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    name = location or config.get("base_model_name_or_path")
    if not name:
        raise InputError(f"{found.adapter / ADAPTER_CONFIG} names no base model; give it with --base")
    try:
        architectures = transformers.AutoConfig.from_pretrained(name).architectures or ["AutoModelForCausalLM"]
        module = getattr(transformers, architectures[0]).from_pretrained(name, dtype="auto")
    except (OSError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the base model {name} cannot be loaded: {first}; --base says where it lies") from error
    return Base(name, module, lambda: _load_processor(name))


def _load_processor(name: str) -> Any:
    try:
        return transformers.AutoProcessor.from_pretrained(name)  # a tokenizer, for models that only read text
    except (OSError, ValueError) as error:
        raise InputError(f"the base model {name} has no tokenizer: {str(error).splitlines()[0]}") from error


def _is_trained_on(found: Checkpoint, module: Any) -> bool:
    """Whether the weights are those that the run began with, where the checkpoint still knows them."""
    scalars = Path(found.state or found.adapter) / "trainer.json"
    if not scalars.exists():
        return True
    known: str = json.loads(scalars.read_text(encoding="utf-8"))["fingerprint"]
    return fingerprint(module.named_parameters()) == known
