"""Load a tokenizer that is ready for training: with a pad token, a length, and no torch import where avoidable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from automodel import InputError

from automodel_huggingface.locations import Location, unreachable

_PLAIN_CLASSES = {"TokenizersBackend", "PreTrainedTokenizerFast"}
_UNSET_LENGTH = 1_000_000_000  # transformers writes 1e30 for «not known»


def load_tokenizer(
    location: Location, revision: str | None = None, cache_dir: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer of a location that holds no GGUF file.

    It is saved beside the trained model, so it stays as the checkpoint has it, but for what is missing: without a pad
    token it gets its end-of-text token as one (the collate function masks by length, never by pad token, and pads on
    the right whatever `padding_side` says), and without `model_max_length` the model's number of positions.

    Raises:
        InputError: the location has none, or the Hub does not give it.
    """
    tokenizer = _load(location, revision, cache_dir, trust_remote_code)
    complete(tokenizer, location)
    return tokenizer


def complete(tokenizer: Any, location: Location) -> None:
    """Give a tokenizer what it misses: a pad token, and the number of positions of its model as its length.

    Raises:
        InputError: it has neither a pad nor an end-of-text token.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"the tokenizer of {location.name} has neither a pad nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.model_max_length > _UNSET_LENGTH and location.directory is not None:
        tokenizer.model_max_length = _num_positions(location.directory) or tokenizer.model_max_length


def _load(location: Location, revision: str | None, cache_dir: str | None, trust_remote_code: bool) -> Any:
    directory = location.directory
    if directory is not None and not any(
        (directory / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        raise InputError(f"the model {location.name} has no tokenizer: its directory holds no tokenizer.json")
    if directory is not None and _is_plain(directory):
        from transformers.tokenization_utils_tokenizers import TokenizersBackend

        # AutoTokenizer would come to the same class by way of the model's configuration, and import torch for it
        return TokenizersBackend.from_pretrained(directory)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            location.source, revision=revision, cache_dir=cache_dir, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        if directory is None:
            raise InputError(unreachable(location.name, revision, error)) from error
        raise InputError(f"the tokenizer of {location.name} cannot be loaded: {error}") from error


def _is_plain(directory: Path) -> bool:
    config = directory / "tokenizer_config.json"
    if not (directory / "tokenizer.json").is_file() or not config.is_file():
        return False
    settings = _json(config)
    return settings.get("tokenizer_class") in _PLAIN_CLASSES and "auto_map" not in settings


def _num_positions(directory: Path) -> int | None:
    config = directory / "config.json"
    if not config.is_file():
        return None
    settings = _json(config)
    return (settings.get("text_config") or settings).get("max_position_embeddings")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is broken: {error}") from error
