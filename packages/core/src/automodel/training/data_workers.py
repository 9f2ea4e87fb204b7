"""Processes that load samples: forked from a server that does nothing else, and alive exactly as long as their run."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from types import ModuleType

from automodel.errors import RunError
from automodel.launch.signals import SIGNALS


def worker_context(modules: Iterable[str]) -> BaseContext:
    """Start the server that data workers are forked from, unless it runs, and return the context to start them with.

    A process that trains has threads (of gloo, NCCL, autograd), whose locks a fork copies as they are: a worker forked
    from it can wait forever for a thread that it does not have. The server only imports, while the run goes on, and has
    no threads but those of libraries that stop them for a fork (OpenBLAS).

    Neither it nor its workers take the signals that ask a run to end, which schedulers send to every process.

    Args:
        modules: what workers need, imported once, by the server.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.data", *modules])
    with _blocked({*SIGNALS, signal.SIGINT}):
        resource_tracker.ensure_running()
    # once more, since that has unblocked what it wants unblocked (python 3.11)
    with _blocked({*SIGNALS, signal.SIGINT}):
        forkserver.ensure_running()
    _kill_at_exit()
    return context


@cache
def _kill_at_exit() -> None:
    """Let no worker that hangs keep the process from ending, which would wait for it: it takes no SIGTERM."""

    def kill() -> None:
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(kill)


@contextmanager
def without_main() -> Iterator[None]:
    """Let workers that are started in the context not run the user's script once more: they need nothing of it.

    Python does so to find what the script defines, which is why scripts guard their calls by `__name__`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent(worker: int) -> None:
    """End this worker when the process that reads from it is gone: torch looks only whether the server is."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def loss_told(num_workers: int) -> Iterator[None]:
    """Tell in one message of a worker that is gone while samples are read in the context.

    Raises:
        RunError: a worker was killed.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        text = str(error)
        # torch says so when it knows; what it was reading or writing just then breaks off before
        lost = text.startswith("DataLoader worker (pid") if isinstance(error, RuntimeError) else num_workers > 0
        if not lost or text.startswith(
            "Caught "
        ):  # an error of the data set itself, which torch raises again by its class
            raise
        raise RunError(
            f"a process that loads samples has gone ({text}): it was killed, as the kernel does when memory runs out. "
            "A smaller dataloader.num_workers or prefetch_factor needs less; the same command goes on from the newest "
            "checkpoint"
        ) from error


@contextmanager
def _blocked(numbers: set[signal.Signals]) -> Iterator[None]:
    """Let processes that are started in the context begin with these signals blocked; none is lost to this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
