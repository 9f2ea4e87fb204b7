"""How the processes are arranged: replicas, shards, sequence parts and tensor parts of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from automodel import InputError
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Sizes:
    """The sizes of the axes; their product is the number of processes.

    Neighbouring ranks share a tensor, then a sequence, then a sharded model, then are replicas: the axis that talks
    most lies innermost, where links are fastest.
    """

    replicate: int
    shard: int
    cp: int
    tp: int

    @property
    def dp(self) -> int:
        """How many processes train on different samples."""
        return self.replicate * self.shard


def sizes(world_size: int, dp_size: int | None, replicate: int, cp: int, tp: int) -> Sizes:
    """Fill in what is left for data parallelism.

    Raises:
        InputError: the sizes do not multiply to the number of processes.
    """
    for name, value in (("dp_size", dp_size), ("dp_replicate_size", replicate), ("cp_size", cp), ("tp_size", tp)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if world_size % (cp * tp):
        raise InputError(f"tp_size {tp} x cp_size {cp} does not divide the {world_size} processes of this run")
    dp = world_size // (cp * tp)
    if dp_size not in (None, dp):
        raise InputError(
            f"dp_size {dp_size} x tp_size {tp} x cp_size {cp} is not the {world_size} processes of this run; leave "
            "dp_size out and it is what is left"
        )
    if dp % replicate:
        raise InputError(f"dp_replicate_size {replicate} does not divide the {dp} processes of data parallelism")
    return Sizes(replicate, dp // replicate, cp, tp)


@dataclass(frozen=True)
class Mesh:
    """The meshes and groups of this process.

    Args:
        parameters: for `fully_shard`: (shard), or (replicate, shard) where there are replicas; context parallelism
            shards parameters as well.
        tp: of tensor parallelism, None without.
        cp: of context parallelism, None without.
        dp_group: the processes with different samples, None if this one is alone.
    """

    parameters: DeviceMesh
    tp: DeviceMesh | None
    cp: DeviceMesh | None
    dp_group: dist.ProcessGroup | None

    @property
    def cp_group(self) -> dist.ProcessGroup | None:
        """The processes with different positions of the same samples."""
        return None if self.cp is None else self.cp.get_group()


def build_mesh(axes: Sizes, device: torch.device) -> Mesh:
    """Make the meshes; all processes call it together."""
    shape = (axes.replicate, axes.shard * axes.cp, axes.tp)
    whole = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard", "tp"))
    cp_group = _group(axes, lambda replicate, shard, cp, tp: (replicate, shard, tp)) if axes.cp > 1 else None
    return Mesh(
        parameters=whole["replicate", "shard"] if axes.replicate > 1 else whole["shard"],
        tp=whole["tp"] if axes.tp > 1 else None,
        cp=None if cp_group is None else DeviceMesh.from_group(cp_group, device.type, mesh_dim_names=("cp",)),
        dp_group=_group(axes, lambda replicate, shard, cp, tp: (cp, tp)) if axes.dp > 1 else None,
    )


def _group(axes: Sizes, same: Callable[[int, int, int, int], tuple[int, ...]]) -> dist.ProcessGroup:
    """This process's group of those whose coordinates agree in what `same` takes of them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in range(dist.get_world_size()):
        rest, tp = divmod(rank, axes.tp)
        rest, cp = divmod(rest, axes.cp)
        replicate, shard = divmod(rest, axes.shard)
        groups.setdefault(same(replicate, shard, cp, tp), []).append(rank)
    own, _ = dist.new_subgroups_by_enumeration(list(groups.values()))
    assert isinstance(own, dist.ProcessGroup)  # every rank is in one
    return own
