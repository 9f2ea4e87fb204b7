"""What a checkpoint is written from: the run as it was after a step, held by each process for its part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from automodel.checkpoint import directory, manifest
from automodel.checkpoint.model_files import model_part, write_model
from automodel.checkpoint.state import state_of, write_state
from automodel.environment import versions
from automodel.notices import notice
from automodel.parallel.groups import wait_for_all
from automodel.parallel.process_group import is_first

if TYPE_CHECKING:
    from automodel.training.parts import Parts


@dataclass(frozen=True)
class Snapshot:
    """A run after a step.

    Args:
        step: optimizer steps done.
        about: what the manifest tells besides the files.
        tensors: what resuming needs of this process.
        scalars: the same for all processes.
        model: what this process writes of the model's own files; None if they are not wanted.
        is_copy: training may go on while it is written.
    """

    step: int
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]
    model: dict[str, Tensor] | None
    is_copy: bool


def take(parts: Parts, about: dict[str, Any], *, with_model: bool, copied: bool) -> Snapshot:
    """Hold the present state of a run. All processes call it together.

    Args:
        parts: of the run.
        about: for the manifest.
        with_model: the model's own files are wanted besides what resuming needs.
        copied: tensors are copied to the CPU's memory, so that training may go on while they are written. Parts of
            tensors that say for themselves which they are (see `whole`) would no longer do so: they are not copied.
    """
    tensors, scalars = state_of(parts)
    locals_ = [value._local_tensor for value in tensors.values() if isinstance(value, DTensor)]
    if copied and any(hasattr(local, "__create_chunk_list__") for local in locals_):
        notice("checkpoint.async: the parts of tensors of this layout cannot be copied; saves are waited for")
        copied = False
    model = model_part(parts.module) if with_model else None
    if copied:
        copies: dict[int, Tensor] = {}  # what trains is in both: it is copied once
        live = {_address(value) for value in (*parts.module.parameters(), *parts.module.buffers())}
        tensors = {name: _copy(value, copies) for name, value in tensors.items()}
        if model is not None:  # what was gathered from parts is a copy already
            model = {n: _copy(value, copies) if _address(value) in live else value for n, value in model.items()}
    return Snapshot(parts.progress.step, about, tensors, scalars, model, copied)


def write(snapshot: Snapshot, target: Path, parts: Parts, group: dist.ProcessGroup | None = None) -> None:
    """Write a snapshot into the empty directory `target`, to disk. All processes call it together.

    Args:
        snapshot: of each process.
        target: is seen by all of them.
        parts: of the run; only what does not change while it trains is read.
        group: of all processes; null is the default one.

    Raises:
        OSError: the file system refused (so do safetensors and DCP by errors of their own).
    """
    if snapshot.model is not None:
        write_model(target / "model", parts.module, snapshot.model, parts.processor, group)
    (target / "state").mkdir(exist_ok=True)
    wait_for_all(group)
    write_state(target / "state", snapshot.tensors, snapshot.scalars, group)
    wait_for_all(group)
    if is_first():
        (target / "recipe.yaml").write_text(parts.recipe.dump(), encoding="utf-8")
        about = {"step": snapshot.step, "recipe_digest": parts.recipe.digest(), **snapshot.about}
        manifest.write_manifest(target, about | {"versions": versions()})
        directory.flush(target)


@torch.no_grad()
def _copy(tensor: Tensor, copies: dict[int, Tensor]) -> Tensor:
    address = _address(tensor)
    known = copies.get(address) if address else None
    if known is None or _kind(known) != _kind(tensor):
        known = copies[address] = tensor.detach().to("cpu", copy=True)
    return known


def _kind(tensor: Tensor) -> tuple[object, ...]:
    # the whole of a replicated DTensor lies where its part does, but is no DTensor, which safetensors would not write
    return tensor.shape, tensor.dtype, isinstance(tensor, DTensor)


def _address(tensor: Tensor) -> int:
    """Where this process's part of a tensor lies; 0 for an empty one."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).data_ptr()
