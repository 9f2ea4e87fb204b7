"""Many processes on this machine: torchrun's elastic agent, run in the process of the command itself."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from automodel.errors import AutoModelError, InputError, RunError

F = TypeVar("F", bound=Callable[..., Any])

SECONDS_TO_SAVE = 300
"""How long workers may take to save a checkpoint after a signal, before they are killed."""

_OPTIONS = {
    "--nproc-per-node": ("N|gpu|cpu|auto", "Processes on this machine; `gpu` is one for each."),
    "--nnodes": ("N|MIN:MAX", "Machines; with MIN:MAX the run goes on while at least MIN are there."),
    "--node-rank": ("N", "This machine's number, where there is no c10d rendezvous."),
    "--rdzv-backend": ("NAME", "How machines meet: c10d, or static with --master-addr."),
    "--rdzv-endpoint": ("HOST:PORT", "Where machines meet."),
    "--rdzv-id": ("ID", "The same on all machines of a run."),
    "--rdzv-conf": ("KEY=VALUE,...", "Further settings of the rendezvous."),
    "--local-addr": ("HOST", "This machine's address, where its name does not lead the others to it."),
    "--master-addr": ("HOST", "The first machine, for the static rendezvous."),
    "--master-port": ("PORT", "Its port."),
    "--max-restarts": ("N", "How often processes are started anew when one has died; the run resumes by itself."),
    "--monitor-interval": ("SECONDS", "How often processes are looked after."),
}


def launch_options(function: F) -> F:
    """Add torchrun's options to a verb; its callback calls `launched` with them."""
    for name, (metavar, text) in reversed(_OPTIONS.items()):
        function = click.option(name, metavar=metavar, help=text)(function)
    return function


def launched(words: Sequence[str], options: Mapping[str, str | None]) -> bool:
    """Run the command in many processes, if it asks for that and this is not one of them.

    Args:
        words: of the command line, after `automodel`.
        options: the values of `launch_options`, by parameter name.

    Returns:
        Whether the command has been run; False leaves it to this process.

    Raises:
        InputError: an option is wrong.
        WorkersFailedError: the run failed, and the processes have told why.
    """
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    if not given:
        return False
    if "RANK" in os.environ:
        raise InputError(
            f"{', '.join(given)}: leave it out; torchrun or a scheduler has started this process as one of several "
            f"already (RANK is {os.environ['RANK']})"
        )
    nnodes = given.get("--nnodes", "1")
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", nnodes):
        raise InputError(f"--nnodes must be a number or MIN:MAX, not {nnodes}")
    if nnodes != "1" and not given.keys() & {"--rdzv-endpoint", "--master-addr"}:
        raise InputError(
            f"--nnodes {nnodes}: say where machines meet, by --rdzv-backend c10d --rdzv-endpoint HOST:PORT"
        )
    _run_agent([f"{name}={value}" for name, value in given.items()], without_launch_options(words))
    return True


def without_launch_options(words: Sequence[str]) -> list[str]:
    """The words of a command line that workers get."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word in _OPTIONS:
            rest = rest[1:]
        elif word.partition("=")[0] not in _OPTIONS:
            kept.append(word)
    return kept


class WorkersFailedError(AutoModelError):
    """Processes of the run have failed. An empty message: they have told why themselves."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _run_agent(options: list[str], words: list[str]) -> None:
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    signals = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    arguments = [*options, signals, f"--shutdown-timeout={SECONDS_TO_SAVE}", "-m", "automodel", *words]
    with tempfile.TemporaryDirectory(prefix="automodel-") as directory:
        exit_file = Path(directory) / "exit"
        os.environ |= {"AUTOMODEL_AGENT": str(os.getpid()), "AUTOMODEL_AGENT_EXIT": str(exit_file)}
        logging.disable(logging.ERROR)  # the agent's log tells of a failed worker once more, in its own words
        try:
            parsed = run.parse_args(arguments)
            if run.parse_min_max_nnodes(parsed.nnodes)[1] > 1:
                # agents that share their own store with the processes never meet a machine that comes back (torch 2.15)
                os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
            _share_cores(run.determine_local_world_size(parsed.nproc_per_node))
            run.run(parsed)
        except (ValueError, AssertionError) as error:
            raise InputError(f"the processes cannot be started: {error}") from error
        except (RendezvousError, DistError) as error:
            raise RunError(
                f"the machines did not meet: {str(error).splitlines()[0]}. Was the same command given on all of them, "
                "with an --rdzv-endpoint (or --master-addr) that all of them reach?"
            ) from error
        except SignalException as error:
            if exit_file.exists():
                raise WorkersFailedError("", int(exit_file.read_text(encoding="utf-8"))) from error
            raise WorkersFailedError("", 128 + error.sigval) from error
        except ChildFailedError as error:
            raise _told(error.failures) from error
        finally:
            logging.disable(logging.NOTSET)


def _share_cores(num_processes: int) -> None:
    """torchrun gives each process one thread; the cores shared out is what a person would do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_processes)))


def _told(failures: Mapping[int, Any]) -> WorkersFailedError:
    """What is left to tell of failed workers: a process that was killed could not speak."""
    killed = {rank: failure for rank, failure in failures.items() if failure.exitcode < 0}
    spoken = [failure.exitcode for failure in failures.values() if failure.exitcode > 0]
    by_signal = sorted(
        f"rank {rank} (process {failure.pid}) was killed by {signal.Signals(-failure.exitcode).name}"
        f"{', as the kernel does when memory runs out' if -failure.exitcode == signal.SIGKILL else ''}"
        for rank, failure in killed.items()
        if -failure.exitcode != signal.SIGTERM or not spoken
    )
    return WorkersFailedError("; ".join(by_signal), 2 if 2 in spoken else max(spoken, default=1))
