"""The Hugging Face directory in a checkpoint, written by all processes without any holding the whole model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from automodel.checkpoint.state import whole
from automodel.parallel.groups import wait_for_all
from automodel.parallel.process_group import is_first

_INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r".*?\.\d+\.")


def model_part(module: nn.Module) -> dict[str, Tensor]:
    """What this process writes of the model or its adapter. All processes call it together.

    An adapter, or a model that each process has whole, is the first one's. Of a sharded model each process gathers
    some of the parameters, one after the other.
    """
    tensors = tensors_of(module)
    if hasattr(module, "get_base_model"):  # an adapter: what trains is all there is to save
        trained = {name: value for name, value in tensors.items() if value.requires_grad}
        return _gathered(trained, dict.fromkeys(trained, 0))
    if _is_sharded(module):
        return _gathered(tensors, _owners(tensors))
    return tensors if is_first() else {}


def write_model(
    directory: Path, module: nn.Module, part: dict[str, Tensor], processor: Any, group: dist.ProcessGroup | None = None
) -> None:
    """Write the model, or its adapter, and its tokenizer or processor as `from_pretrained` reads them.

    All processes call it together. Each writes its part of a sharded model to a file of its own.

    Args:
        directory: is created.
        module: is asked how it is written; its values are not read.
        part: what `model_part` gave.
        processor: of the model.
        group: of all processes; null is the default one.

    Raises:
        OSError: the file system refused.
    """
    model: Any = module
    if _is_sharded(module) and not hasattr(module, "get_base_model"):
        own = directory / f"part_{dist.get_rank()}"
        if is_first():
            directory.mkdir(parents=True)
        wait_for_all(group)
        model.save_pretrained(str(own), state_dict=part)
        wait_for_all(group)
        if is_first():
            _join(directory)
    elif is_first():
        model.save_pretrained(str(directory), state_dict=part)
    if is_first():
        processor.save_pretrained(str(directory))


def _is_sharded(module: nn.Module) -> bool:
    return any(isinstance(value, DTensor) for value in module.parameters())


def _join(directory: Path) -> None:
    parts = sorted(directory.glob("part_*"), key=lambda path: int(path.name.removeprefix("part_")))
    files = [file for part in parts for file in sorted(part.glob("*.safetensors"))]
    weight_map, total_size = {}, 0
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with file.open("rb") as opened:  # a safetensors file begins with the length of its header, then the header
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for key, about in header.items():
            if key != "__metadata__":
                weight_map[key] = name
                total_size += about["data_offsets"][1] - about["data_offsets"][0]
        file.rename(directory / name)
    for path in parts[0].iterdir():  # config.json, generation_config.json
        if path.name != _INDEX:
            path.rename(directory / path.name)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for part in parts:
        shutil.rmtree(part)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters (tied ones once) and persistent buffers by name."""
    persistent = module.state_dict().keys()
    buffers = {name: value for name, value in module.named_buffers() if name in persistent}
    return dict(module.named_parameters()) | buffers


def _owners(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Which process writes which tensor, about equally much each.

    A layer is written by one: `save_pretrained` may make one tensor of several of its.
    """
    loads = [0] * dist.get_world_size()
    layers: dict[str, int] = {}
    for name, value in tensors.items():
        owner = layers.setdefault(_layer(name), loads.index(min(loads)))
        loads[owner] += value.numel()
    return {name: layers[_layer(name)] for name in tensors}


def _layer(name: str) -> str:
    """The name up to its first number, `model.layers.3.`, or all of it."""
    match = _NUMBERED.match(name)
    return match[0] if match else name


def _gathered(tensors: dict[str, Tensor], owners: dict[str, int]) -> dict[str, Tensor]:
    """The whole of the tensors that this process owns, on the CPU; all processes take part in each."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    mine = {}
    for name, value in tensors.items():
        full = whole(value)
        if owners[name] == rank:
            mine[name] = full.cpu()
    return mine
