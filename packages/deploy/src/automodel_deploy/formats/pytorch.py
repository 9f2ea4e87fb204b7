"""Export as PyTorch's own files: what `torch.load(..., weights_only=True)` reads, which runs no code."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME


def write(module: Any, directory: Path, max_shard_size: str | None) -> None:
    """Write `config.json`, `generation_config.json` and `pytorch_model.bin`, or numbered files with their index.

    transformers 5 reads such files, but its `save_pretrained` no longer writes them. The tensors have the names that it
    gives them in safetensors files.

    Args:
        module: a transformers model on the CPU.
        directory: is created.
        max_shard_size: of one file, as `5GB`; null is one file.

    Raises:
        OSError: the file system refused.
    """
    _write_configuration(module, directory)
    tensors = revert_weight_conversion(module, _tensors(module))
    split = split_torch_state_dict_into_shards(
        tensors,
        filename_pattern=WEIGHTS_NAME.replace(".bin", "{suffix}.bin"),
        max_shard_size=max_shard_size or sys.maxsize,
    )
    for name, members in split.filename_to_tensors.items():
        _save(directory / name, {member: tensors[member] for member in members})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_configuration(module: Any, directory: Path) -> None:
    """What transformers' `save_pretrained` writes beside the tensors."""
    directory.mkdir()
    module.config.dtype = str(module.dtype).removeprefix("torch.")
    module.config.architectures = [type(module).__name__]
    if module.is_remote_code():
        custom_object_save(module, str(directory), config=module.config)
    module.config.save_pretrained(str(directory))
    if module.can_generate():
        module.generation_config.save_pretrained(str(directory))


def _tensors(module: Any) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once, each with memory of its own size."""
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    return {name: _alone(value) for name, value in module.state_dict().items() if name in names}


def _alone(value: Tensor) -> Tensor:
    """A tensor that is part of a larger one is copied: torch would save the larger one."""
    if type(value) is Tensor and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with path.open("wb") as file:
        try:
            torch.save(dict(tensors), file)
        except RuntimeError as error:  # torch ends its archive after a refusal too, fails at that, and tells only that
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
