"""The command, started, with all processes that it starts: waited for, paused at once, killed."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support import AUTOMODEL, processes_with

SECONDS = 300
"""Longer than any of these runs takes on a machine that is busy with other things: what is not done by then hangs."""


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, as subprocess has it (-9 after SIGKILL), and what it said."""

    exit_code: int
    stdout: str
    stderr: str

    def complaints(self):
        """What is wrong with how it told of its end."""
        if "Traceback" in self.stdout + self.stderr:
            yield "showed a traceback"
        if 0 < self.exit_code < 128 and "error: " not in self.stderr:
            yield "failed without a word"

    def __str__(self):
        return f"exit code {self.exit_code}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"


class EndedError(Exception):
    """The command has ended before what was waited for."""


class Hangs(Exception):  # noqa: N818 - what happened, not what went wrong here
    """The command has neither done what was waited for nor ended."""


class Command:
    """`automodel` with `words`, started in `directory`, which all of its processes carry in their environment.

    Args:
        words: the command line.
        directory: where it runs, and where what it says goes.
        number: of the command among those started there.
    """

    def __init__(self, words, directory, number):
        self._variable = f"AUTOMODEL_FAULTS={directory}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        own = dict([self._variable.split("=", 1)], HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
        self._files = [directory / f"{name}_{number}" for name in ("stdout", "stderr")]
        with self._files[0].open("w") as stdout, self._files[1].open("w") as stderr:
            self._process = subprocess.Popen(
                [AUTOMODEL, *words], cwd=directory, env=inherited | own, stdout=stdout, stderr=stderr
            )
        self.pid = self._process.pid
        self.started = time.monotonic()

    @property
    def stdout(self):
        """What it has said so far."""
        return self._files[0].read_text(encoding="utf-8")

    def processes(self):
        """The ids of all its processes that are alive."""
        return processes_with(self._variable)

    def has_ended(self):
        return self._process.poll() is not None

    def ending(self):
        """How it ended; it has."""
        return Ending(self._process.returncode, *(file.read_text(encoding="utf-8") for file in self._files))

    def until(self, ready, seconds=SECONDS):
        """Wait until `ready` returns something.

        Raises:
            EndedError: it ended before.
            Hangs: neither came within `seconds`.
        """
        give_up = time.monotonic() + seconds
        while not ready():
            if self.has_ended():
                raise EndedError
            if time.monotonic() > give_up:
                raise Hangs(f"neither done nor ended after {seconds} s")
            time.sleep(0.005)

    def send(self, number):
        """Send a signal to the process that was started."""
        self._process.send_signal(number)

    def pause(self):
        """Stop all processes where they are.

        Raises:
            EndedError: there are none any more.
        """
        paused = set()
        while running := set(self.processes()) - paused:  # what one has started meanwhile is paused too
            for process in running:
                _send(process, signal.SIGSTOP)
            paused |= running
        give_up = time.monotonic() + SECONDS
        while not all(_state(process) in "TtZX" for process in paused):  # a write to the disk is finished first
            if time.monotonic() > give_up:
                raise Hangs("cannot be paused")
            time.sleep(0.001)
        if self.has_ended():
            self.go_on()
            raise EndedError

    def go_on(self):
        """Let paused processes go on."""
        for process in self.processes():
            _send(process, signal.SIGCONT)

    def kill(self):
        """Kill whatever is left of it, and return how it ended."""
        while left := self.processes():
            for process in left:
                _send(process, signal.SIGKILL)
            time.sleep(0.01)
        self._process.wait(timeout=SECONDS)
        return self.ending()


def parent(process):
    """The id of a process's parent, or None when it is gone."""
    fields = _stat(process)
    return int(fields[1]) if fields else None


def command_line(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


def _state(process):
    """T when it is stopped, Z when only its parent has not noticed its end, X when it is gone."""
    return (_stat(process) or "X")[0]


def _stat(process):
    """The fields of /proc/<id>/stat from the state on."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None


def _send(process, number):
    with suppress(ProcessLookupError):
        os.kill(process, number)
