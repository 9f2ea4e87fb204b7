"""The faults: each a function that disturbs a run at a random moment and returns when its command has ended."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from automodel.checkpoint import directory, manifest
from faults.processes import command_line, parent
from faults.recipe import STEPS, STEPS_PER_SAVE
from faults.trial import Trial
from support import workers


@dataclass(frozen=True)
class Fault:
    """What is done to a run.

    Args:
        name: for the table.
        disturb: does it.
        exit_codes: the disturbed command may end with.
        words: of the command line.
        num_processes: that train.
        fills_disk: needs a disk that can be filled.
        may_fail_with: words by which the command may refuse to go on at once, twice at most.
    """

    name: str
    disturb: Callable[[Trial], None]
    exit_codes: tuple[int, ...]
    words: tuple[str, ...] = ()
    num_processes: int = 1
    fills_disk: bool = False
    may_fail_with: str | None = None


def killed(trial):
    with trial.paused(trial.some_moment()):
        trial.command.send(signal.SIGKILL)
    trial.end()


def asked_to_stop(trial):
    with trial.paused(trial.some_moment()):
        trial.command.send(signal.SIGTERM)
    trial.end()


def killed_while_saving(trial):
    step = trial.some_moment(first_step=1)
    with trial.paused(lambda: step() and trial.is_saving()):
        trial.command.send(signal.SIGKILL)
    trial.end()


def disk_full(trial):
    """No room at all, or some, so that it ends in a small file, in a large one or between two.

    It stays full: a checkpoint that is pruned would make room for the next. The last save is still to come.
    """
    room = trial.moments.choice([0, trial.moments.randrange(64_000), trial.moments.randrange(8_000_000)])
    is_started_while_full = trial.disk.can_stay_full and trial.moments.random() < 0.3
    moment = trial.some_moment()
    with trial.paused(lambda: moment() and trial.last_step() < STEPS):
        trial.disk.fill(trial.command.pid, room)
    trial.end(meanwhile=lambda: trial.disk.fill(trial.command.pid, room))
    if is_started_while_full and trial.endings[-1].exit_code:
        trial.start()
        trial.end()
    trial.disk.make_room()


def newest_damaged(trial):
    """While the run is down; one in four times the one before as well."""
    num_damaged = trial.moments.choice([1, 1, 1, 2])
    with trial.paused(trial.some_moment(first_step=(num_damaged + 1) * STEPS_PER_SAVE)):
        trial.command.send(signal.SIGKILL)
    trial.end()
    for step, path in directory.checkpoints(trial.run)[-num_damaged:]:
        trial.moments.choice([flip_a_byte, truncate_a_file, remove_a_shard, tear_the_manifest])(path, trial.moments)
        assert manifest.problems(path), f"{path} is not damaged"
        trial.witness.damaged(step)


def flip_a_byte(checkpoint, moments):
    file = _a_file(checkpoint, moments)
    content = bytearray(file.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    file.write_bytes(content)


def truncate_a_file(checkpoint, moments):
    file = _a_file(checkpoint, moments)
    os.truncate(file, moments.randrange(file.stat().st_size))


def remove_a_shard(checkpoint, moments):
    moments.choice(sorted(checkpoint.rglob("*.safetensors"))).unlink()


def tear_the_manifest(checkpoint, moments):
    file = checkpoint / manifest.MANIFEST
    os.truncate(file, moments.randrange(file.stat().st_size - 1))  # without its last line's end alone it is whole


def _a_file(checkpoint, moments):
    return checkpoint / moments.choice(sorted(manifest.read_manifest(checkpoint)["files"]))


def rank_lost(trial):
    moment, rank = trial.some_moment(), trial.moments.randrange(2)
    with trial.paused(lambda: moment() and len(workers(trial.command)) == 2):
        os.kill(workers(trial.command)[rank], signal.SIGKILL)
    trial.end()


def data_worker_killed(trial):
    """Or, one in four times, the server that it was forked from."""
    moment, is_server = trial.some_moment(), trial.moments.random() < 0.25
    with trial.paused(lambda: moment() and data_worker(trial.command)):
        worker = data_worker(trial.command)
        os.kill(parent(worker) if is_server else worker, signal.SIGKILL)
    trial.end()


def data_worker(command):
    """The process that loads samples, forked from a server that looks the same; None when there is none now."""
    servers = {process for process in command.processes() if "forkserver" in command_line(process)}
    return next((process for process in servers if parent(process) in servers), None)


TWO = ("--nproc-per-node", "2", "--monitor-interval", "0.2")
TERMINATED = (0, 128 + signal.SIGTERM, -signal.SIGTERM)
FAULTS = (
    Fault("killed (SIGKILL)", killed, (-signal.SIGKILL,)),
    Fault("asked to stop (SIGTERM)", asked_to_stop, TERMINATED),
    Fault("killed while it saves", killed_while_saving, (-signal.SIGKILL,)),
    Fault("disk full", disk_full, (1, 2), fills_disk=True),
    Fault("newest checkpoint damaged", newest_damaged, (-signal.SIGKILL,)),
    Fault("data worker killed", data_worker_killed, (0, 1), words=("dataloader.num_workers=1",)),
    Fault("one of two processes lost", rank_lost, (1,), words=TWO, num_processes=2),
    Fault(
        *("one of two processes lost, the agent starts both again", rank_lost, (0,)),
        words=(*TWO, "--max-restarts", "2"),
        num_processes=2,
    ),
    Fault("agent of two processes asked to stop (SIGTERM)", asked_to_stop, TERMINATED, words=TWO, num_processes=2),
    Fault(
        *("agent of two processes killed (SIGKILL)", killed, (-signal.SIGKILL,)),
        words=TWO,
        num_processes=2,
        may_fail_with="another run (process",  # they save and end by themselves, in some seconds
    ),
)
