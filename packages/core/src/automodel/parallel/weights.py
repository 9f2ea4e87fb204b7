"""Pretrained values for a module whose parameters may be parts of tensors on this process (DTensors)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Place = tuple[nn.Module, str]
"""Where a parameter lies: its owner and attribute."""


def parameter_slots(module: nn.Module) -> dict[str, Place]:
    """Where each parameter (tied ones once) and persistent buffer lies: by name, its owner and attribute.

    Owners stay when parameters are replaced by parts of them, so the slots find what a name stands for afterwards.
    """
    persistent = module.state_dict().keys()
    names = [name for name, _ in module.named_parameters()]
    names += [name for name, _ in module.named_buffers() if name in persistent]
    slots = {}
    for name in names:
        owner, _, attribute = name.rpartition(".")
        slots[name] = (module.get_submodule(owner), attribute)
    return slots


def give_memory(module: nn.Module, device: torch.device) -> None:
    """Give every meta tensor of a module memory on a device, without values; tied parameters stay tied."""
    made: dict[int, Tensor] = {}

    def filled(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        return made.setdefault(id(tensor), torch.empty_like(tensor, device=device))

    tied = tied_places(module)
    module._apply(filled)
    for (owner, key), (first, first_key) in tied:
        owner.register_parameter(key, getattr(first, first_key))


def leave_mapped_files(module: nn.Module) -> None:
    """Copy the trained parameters, in place; what was loaded may lie in the mapped file of a checkpoint.

    Otherwise the first step copies it, page by page as it writes: half a second more for 135 million parameters.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()


def tied_places(module: nn.Module) -> list[tuple[Place, Place]]:
    """Further places of parameters that have several, each with the first one, to tie them again after a change."""
    first: dict[int, Place] = {}
    pairs = []
    for owner in module.modules():
        for key, parameter in owner.named_parameters(recurse=False):
            if id(parameter) in first:
                pairs.append(((owner, key), first[id(parameter)]))
            first.setdefault(id(parameter), (owner, key))
    return pairs


def read_safetensors(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from the safetensors files of a directory; each process reads only its parts.

    All processes call it together.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(directory))
    values = {name: value.detach() for name, value in tensors.items()}
    load(values, storage_reader=reader, no_dist=not dist.is_initialized())


def broadcast_weights(whole: Mapping[str, Tensor] | None, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from the whole ones that the first process has; the others give None.

    All processes call it together. One whole tensor at a time is on the other processes.
    """
    for name, value in tensors.items():
        part = value.detach()
        device = part.device
        full = torch.empty(part.shape, dtype=part.dtype, device=device)
        if whole is not None:
            full.copy_(whole[name].detach())
        if dist.is_initialized():
            dist.broadcast(full, src=0)
        if isinstance(part, DTensor):
            # every process has the whole tensor by now: no source rank, and nothing is sent
            distributed = distribute_tensor(full, part.device_mesh, part.placements, src_data_rank=None)
            part.to_local().copy_(distributed.to_local())
        else:
            part.copy_(full)
