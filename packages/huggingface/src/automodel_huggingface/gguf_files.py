"""GGUF files as ordinary models: dequantised once, kept as Hugging Face directories in the cache."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel import InputError
from automodel.notices import notice

from automodel_huggingface.cache import cache_directory, one_at_a_time, publish
from automodel_huggingface.saving import save_where_called

if TYPE_CHECKING:
    import torch

_FORMAT = 1  # raise it when what is written here changes
MAX_CACHED_BYTES = 8 << 30
"""Dequantised weights above this size are not kept: they would fill a home directory unasked."""


def converted_tokenizer(gguf: Path) -> Path:
    """The directory of the file's tokenizer in Hugging Face format, made the first time (seconds: it imports torch).

    Raises:
        InputError: the file is no GGUF file, or holds no tokenizer that transformers knows.
    """
    target = _cached(gguf, "tokenizer")
    with one_at_a_time(target):
        if not (target / "tokenizer.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            tokenizer = _read_tokenizer(gguf)
            with publish(target) as directory:
                tokenizer.save_pretrained(directory)
    return target


def load_gguf(gguf: Path, dtype: str, attention: str) -> torch.nn.Module:
    """Load the model with its weights dequantised to `dtype`: an ordinary model, which trains and saves as one.

    From the cache if it is there; otherwise dequantised, and left there unless it is larger than `MAX_CACHED_BYTES`.

    Raises:
        InputError: the file is no GGUF file, or of an architecture that transformers does not read.
    """
    target = _cached(gguf, dtype)
    with one_at_a_time(target):
        for ready in (target, _cached(gguf, "float32")):
            if (ready / "config.json").is_file():
                return _load_directory(ready, dtype, attention)
        shutil.rmtree(target, ignore_errors=True)
        module = _dequantise(gguf, dtype, attention)
        save_where_called(module)
        if sum(tensor.nbytes for tensor in module.parameters()) <= MAX_CACHED_BYTES:
            try:
                with publish(target) as directory:
                    module.save_pretrained(directory)
            except OSError as error:  # a full disk is no reason not to train
                notice(f"the dequantised weights of {gguf.name} could not be kept in {target.parent}: {error}")
    return module


def converted_model(gguf: Path, dtype: str) -> Path | None:
    """The directory of the file's dequantised weights, made the first time; None if they are too large to keep.

    Raises:
        InputError: as `load_gguf`.
    """
    if kept_model(gguf, dtype) is None:
        load_gguf(gguf, dtype, "sdpa")
    return kept_model(gguf, dtype)


def kept_model(gguf: Path, dtype: str) -> Path | None:
    """The directory of the file's dequantised weights, if it has been made."""
    candidates = (_cached(gguf, dtype), _cached(gguf, "float32"))
    return next((path for path in candidates if (path / "config.json").is_file()), None)


def _cached(gguf: Path, what: str) -> Path:
    from importlib.metadata import version

    stat = gguf.stat()
    key = f"{gguf.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{_FORMAT}|{version('transformers')}"
    return cache_directory() / "gguf" / f"{gguf.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}" / what


def _load_directory(directory: Path, dtype: str, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention)


def _dequantise(gguf: Path, dtype: str, attention: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        return AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            quantization_config=GgufConfig(dequantize=True),
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise InputError(f"the GGUF file {gguf} cannot be loaded: {error}") from error


def _read_tokenizer(gguf: Path) -> Any:
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    try:
        fields = GGUFReader(gguf).fields
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise InputError(f"the tokenizer of the GGUF file {gguf} cannot be loaded: {error}") from error
    pre = fields.get("tokenizer.ggml.pre")
    if pre is not None and pre.contents() == "smollm":
        # transformers 5.23 drops the digit splitting of this pre-tokenizer; test_gguf.py tells when it no longer does
        split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = split
    architecture = fields["general.architecture"].contents()
    if (length := fields.get(f"{architecture}.context_length")) is not None:
        tokenizer.model_max_length = int(length.contents())
    return tokenizer
