"""The processes of a run: how they find each other, and who this one is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from automodel.errors import InputError
from automodel.launch.failures import remember_store


@dataclass(frozen=True)
class ProcessGroup:
    """torch.distributed among the processes that torchrun or a scheduler has started.

    Args:
        backend: of tensors on the training device; null takes nccl for CUDA, gloo for the CPU. Numbers that lie on the
            CPU, such as counts of tokens, go by gloo in any case.
        timeout_minutes: how long a process waits for the others before the run is given up.
    """

    backend: Literal["nccl", "gloo"] | None = None
    timeout_minutes: float = 10

    def __post_init__(self) -> None:
        if self.timeout_minutes <= 0:
            raise InputError(f"timeout_minutes must be above 0, not {self.timeout_minutes}")

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Join the other processes for the time of the context. One process alone joins nobody.

        Raises:
            InputError: the backend does not go with the device.
        """
        if world_size() == 1:
            yield
            return
        backend: str = self.backend or ("nccl" if device.type == "cuda" else "gloo")
        if backend == "nccl" and device.type != "cuda":
            raise InputError(f"dist_env.backend: nccl needs CUDA devices, and this run is on {device}; leave it out")
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = f"cpu:gloo,cuda:{backend}"
        timeout = timedelta(minutes=self.timeout_minutes)
        store = _store(timeout)
        remember_store(store)
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
        try:
            yield
        finally:
            dist.destroy_process_group()


def rank() -> int:
    """The number of this process among all of the run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return rank() == 0


def _store(timeout: timedelta) -> Any:  # torch.distributed exports PrefixStore at run time only
    """Where the processes meet: a store of the first one, or torchrun's, which lives longer than the processes.

    What a killed attempt has left in torchrun's would be taken for this attempt's (gloo: connectFullMesh failed), so
    each has its own prefix in it.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {world_size()}, but {' and '.join(missing)} is not set: start the processes by "
            "`automodel train --nproc-per-node`, torchrun or a scheduler's launcher"
        )
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size(),
        is_master=is_first() and not agents,
        timeout=timeout,
    )
    if not agents:
        return store
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )
