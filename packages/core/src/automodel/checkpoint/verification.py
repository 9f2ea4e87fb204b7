"""Whether what was written is what the run holds: files, tensors, and the model that others will load."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from automodel.checkpoint import manifest
from automodel.checkpoint.model_files import tensors_of
from automodel.checkpoint.snapshot import Snapshot
from automodel.checkpoint.state import load_tensors, saved_tensors
from automodel.errors import InputError
from automodel.interfaces import Batch, DocumentInputs
from automodel.notices import notice
from automodel.parallel.groups import by_first, gathered
from automodel.training.label_tokens import forward_inputs, label_logits
from automodel.training.rng import restore_rng, rng_tensors

if TYPE_CHECKING:
    from automodel.training.parts import Parts

TOLERANCE = 1e-3
"""Of logits, relative to the largest. The weights are the same bit for bit; what differs is what the settings say."""


@dataclass(frozen=True)
class Reference:
    """What the run's model says to a micro-batch at the moment of a snapshot.

    Args:
        batch: this process's.
        logits: (N, V) of its N label tokens, on the CPU.
    """

    batch: Batch
    logits: Tensor


def reference(parts: Parts, batch: Batch) -> Reference:
    """Let the run's model speak. All processes call it together."""
    return Reference(batch, _logits(parts.forward, parts.document_inputs, batch, parts))


def problems_on_disk(target: Path, snapshot: Snapshot, said: Reference, parts: Parts) -> list[str]:
    """What is wrong with a checkpoint that was just written, one line each, the same list on every process.

    Every file is read from the disk again and compared with its checksum, every tensor of the state is loaded and
    compared bit for bit with the run's, and the model is loaded as others will load it: its tensors are compared, and
    its answer to a micro-batch. All processes call it together.
    """
    found = by_first(lambda: _damaged_files(target))
    if not found:
        found = _together(_differences_of_state(target / "state", snapshot.tensors))
    if not found and snapshot.model is not None:
        found = _together(_differences_of_model(target / "model", snapshot, said, parts))
    return found


def _damaged_files(target: Path) -> list[str]:
    for path in target.rglob("*"):
        if path.is_file():
            _forget(path)
    return manifest.problems(target)


def _forget(path: Path) -> None:
    """Let the next reader read the disk, not the memory that the system still holds of what was written to it."""
    if hasattr(os, "posix_fadvise"):  # Linux
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _together(own: list[str]) -> list[str]:
    return list(dict.fromkeys(problem for problems in gathered(own) for problem in problems))


def _differences_of_state(directory: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """What of `tensors` is not in `directory` bit for bit, one line each. All processes call it with their parts.

    They are read into memory of their own, about a gigabyte at a time.
    """
    saved = saved_tensors(directory)
    found = [
        f"{name} is {_described(saved[name]) if name in saved else 'missing'}, not {_described(_kind(value))}"
        for name, value in tensors.items()
        if saved.get(name) != _kind(value)
    ]
    if found:
        return found
    for names in _groups(tensors):
        read = {name: torch.empty_like(tensors[name]) for name in names}
        load_tensors(directory, read)
        found += [f"{name} has other values" for name in names if not _same_bits(read[name], tensors[name])]
    return found


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, or this process's parts of two DTensors, have the same bytes."""
    a, b = (_local(tensor).detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(a, b.to(a.device))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _groups(tensors: Mapping[str, Tensor], num_bytes: int = 2**30) -> Iterator[list[str]]:
    """The names, in groups of so many bytes."""
    names, size = [], 0
    for name, value in tensors.items():
        names.append(name)
        size += value.numel() * value.element_size()
        if size >= num_bytes:
            yield names
            names, size = [], 0
    if names:
        yield names


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype


def _described(kind: tuple[tuple[int, ...], torch.dtype]) -> str:
    return f"{str(kind[1]).removeprefix('torch.')} {list(kind[0])}"


def _differences_of_model(directory: Path, snapshot: Snapshot, said: Reference, parts: Parts) -> list[str]:
    with _undisturbed():
        try:
            module, forward, document_inputs = parts.reload(directory)
        except torch.OutOfMemoryError:
            notice(
                "validate_on_save: there is no memory for a second model, so model/ is not loaded; the rest is verified"
            )
            return []
        except (InputError, OSError, ValueError, SafetensorError) as error:  # what libraries say to damaged files
            return [f"model/ cannot be loaded: {' '.join(str(error).split())[:300]}"]
        live = tensors_of(parts.module)
        wrong = [
            f"model/: {name} has other values"
            for name, value in tensors_of(module).items()
            if not _same(value, snapshot.tensors.get(f"model.{name}", live.get(name)))
        ]
        return wrong or _difference_of_logits(_logits(forward, document_inputs, said.batch, parts), said.logits)


def _same(value: Tensor, expected: Tensor | None) -> bool:
    if expected is None or value.shape != expected.shape or value.dtype != expected.dtype:
        return False
    return _same_bits(value, expected)


def _difference_of_logits(found: Tensor, expected: Tensor) -> list[str]:
    if not expected.numel():
        return []
    largest = float((found - expected).abs().max() / expected.abs().max())
    if largest <= TOLERANCE:
        return []
    return [f"model/ gives other logits than the run's model: they differ by {largest:.2g} of the largest"]


@torch.no_grad()
def _logits(forward: nn.Module, document_inputs: DocumentInputs | None, batch: Batch, parts: Parts) -> Tensor:
    was_training = forward.training
    forward.eval()
    inputs = forward_inputs(batch, parts.device, parts.parallelism, document_inputs)
    try:
        with torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.options.mixed_precision == "bf16"):
            logits_NV = label_logits(forward, inputs)
    finally:
        forward.train(was_training)
    return logits_NV.float().cpu()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave the run's random numbers as they are: making a model draws some."""
    before = rng_tensors()
    try:
        yield
    finally:
        restore_rng(before)
