"""Load the processor of a vision-language model: its tokenizer, its image processor and its chat template."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from automodel import InputError
from automodel.suggest import did_you_mean
from automodel_huggingface.locations import Location, unreachable
from automodel_huggingface.tokenizers import complete


def load_processor(
    location: Location,
    settings: Mapping[str, Any],
    revision: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load the processor of a location; without a pad token it gets its end-of-text token as one.

    Args:
        location: a directory or a Hub id.
        settings: of the processor, instead of the checkpoint's own.
        revision: branch, tag or commit of the Hub repository.
        cache_dir: where the Hub's files are kept.
        trust_remote_code: run Python code that comes with it.

    Raises:
        InputError: the location has none, or the Hub does not give it, or its settings are refused.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            location.source, revision=revision, cache_dir=cache_dir, trust_remote_code=trust_remote_code, **settings
        )
    except (OSError, ValueError, TypeError, ImportError) as error:
        if location.directory is None and isinstance(error, OSError):
            raise InputError(unreachable(location.name, revision, error)) from error
        raise InputError(f"the processor of {location.name} cannot be loaded: {error}") from error
    if not hasattr(processor, "image_processor"):  # AutoProcessor gives what it finds, be it a tokenizer
        raise InputError(
            f"the model {location.name} has no processor of images: is it a model of text (model: causal-lm)?"
        )
    known = _settings(processor)
    if unknown := [name for name in settings if name not in known]:
        raise InputError(
            f"model.processor: {type(processor).__name__} takes no `{unknown[0]}`{did_you_mean(unknown[0], known, 40)}"
        )
    complete(processor.tokenizer, location)
    return processor


def _settings(processor: Any) -> set[str]:
    """The names of what a processor and its parts can be told; they take any name without a word."""
    known = {"backend", "use_fast", "padding_side", "model_max_length"}
    parts = [processor, processor.image_processor]
    if hasattr(processor, "video_processor"):
        parts.append(processor.video_processor)
    for part in parts:
        # `valid_kwargs` is how the image and video processors of transformers say it (5.23); whole processors have none
        known |= inspect.signature(type(part)).parameters.keys()
        known |= getattr(getattr(part, "valid_kwargs", None), "__annotations__", {}).keys()
        known |= {name for name, value in vars(type(part)).items() if not name.startswith("_") and not callable(value)}
    return known - {"self", "args", "kwargs"}
