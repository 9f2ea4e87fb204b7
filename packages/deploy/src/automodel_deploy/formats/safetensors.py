"""Export as safetensors: the Hugging Face directory that transformers, vLLM and others load first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def write(module: Any, directory: Path, max_shard_size: str | None) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors`, or numbered files with their index.

    Args:
        module: a transformers model on the CPU.
        directory: is created.
        max_shard_size: of one file, as `5GB`; null is one file.

    Raises:
        OSError: the file system refused.
        SafetensorError: so it did.
    """
    module.save_pretrained(str(directory), max_shard_size=max_shard_size or sys.maxsize)
