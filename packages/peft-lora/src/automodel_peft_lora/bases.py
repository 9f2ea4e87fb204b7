"""The base model of an adapter: from the recipe it was trained by, or by its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from automodel import InputError
from automodel.checkpoint.trained import base_model

from automodel_peft_lora.checkpoints import ADAPTER_CONFIG, Checkpoint


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
    base = base_model(found.recipe.parent, location=location, allow_targets=allow_targets)
    return Base(base.source.name, base.module, base.source.load_processor)


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
