"""What processes tell each other. Every function works in a run of one process, whose groups are None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def group_size(group: dist.ProcessGroup | None) -> int:
    """The number of processes in a group."""
    return 1 if group is None else dist.get_world_size(group)


def group_rank(group: dist.ProcessGroup | None) -> int:
    """The number of this process in a group."""
    return 0 if group is None else dist.get_rank(group)


def summed(tensor: Tensor, *groups: dist.ProcessGroup | None) -> Tensor:
    """The sum of everybody's tensor over one group after the other; in place."""
    for group in groups:
        if group is not None:
            dist.all_reduce(tensor, group=group)
    return tensor


def largest(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The largest of everybody's values, element by element; in place."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def gathered(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Everybody's value, in the order of ranks; of all processes if no group is named."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def by_first(function: Callable[[], T]) -> T:
    """Let the first process do it, and give its result to all."""
    if not dist.is_initialized():
        return function()
    value: list[Any] = [function() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(value, src=0)
    return value[0]


def wait_for_all(group: dist.ProcessGroup | None = None) -> None:
    """Return when every process is here; by a group of all of them, or by the default one."""
    if dist.is_initialized():
        dist.barrier(group)
