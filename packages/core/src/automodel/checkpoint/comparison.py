"""How far the models of two checkpoints are apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

MOST_SHOWN = 10


def tensor_changes(before: Path, after: Path) -> Iterator[str]:
    """Say of the safetensors files of two directories which tensors differ, and those that differ most.

    The distance of two tensors is the norm of their difference over the norm of the first. One is read at a time.
    """
    first, second = _files(before), _files(after)
    for name in sorted(first.keys() ^ second.keys()):
        yield f"{name} is only in {before if name in first else after}"
    distances = {}
    shared = sorted(first.keys() & second.keys())
    for name in shared:
        one, other = _read(first[name], name), _read(second[name], name)
        if one.shape != other.shape or one.dtype != other.dtype:
            kinds = [f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in (one, other)]
            yield f"{name} is {kinds[0]} in {before} and {kinds[1]} in {after}"
        elif not torch.equal(one, other):
            change = (other.double() - one.double()).norm()
            distances[name] = float(change / one.double().norm()) if one.any() else float("inf")
    yield f"tensors: {len(distances)} of {len(shared)} differ"
    for name in sorted(distances, key=lambda name: -distances[name])[:MOST_SHOWN]:
        yield f"  {distances[name]:.3e}  {name}"
    if len(distances) > MOST_SHOWN:
        yield f"  and {len(distances) - MOST_SHOWN} more that differ less"


def _files(directory: Path) -> dict[str, Path]:
    """The file that each tensor is in."""
    found: dict[str, Path] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
