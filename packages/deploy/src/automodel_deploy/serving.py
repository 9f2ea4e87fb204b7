"""The life of a server: started in a process group of its own, waited for, and stopped with all its processes."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from automodel import InputError, RunError

from automodel_deploy.interfaces import Model, Server
from automodel_deploy.openai_api import base_url, is_healthy
from automodel_deploy.signals import StopSignals

STOP_SECONDS = 20.0
"""How long a server may take to end after SIGTERM."""
_POLL_SECONDS = 0.25
_STOP_POLL_SECONDS = 0.1
_TAIL_LINES = 20


def shell_line(server: Server, model: Model) -> str:
    """The command with its environment, as one would type it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in server.environment(model).items()]
    return " ".join([*variables, shlex.join(server.command(model))])


class ServerProcess:
    """A server's process group.

    Args:
        command: its words.
        environment: variables besides those of this process.
        log: the file its output goes to; emptied first.

    Raises:
        InputError: the program is not there, or the log cannot be written.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("wb")
        except OSError as error:
            raise InputError(f"the server's log {log} cannot be written ({error.strerror})") from error
        with output:
            try:
                self._process = subprocess.Popen(
                    command,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal reaches us alone
                )
            except OSError as error:
                raise InputError(f"{command[0]} cannot be started ({error.strerror})") from error

    def require_running(self, what: str) -> None:
        """Raise if the server has ended.

        Raises:
            RunError: says `what` is missed, and what the server said last.
        """
        if (code := self._process.poll()) is not None:
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            raise RunError(f"the server ended ({how}) {what}{self.told()}")

    def told(self) -> str:
        """The last lines of its log, and where the rest is."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = "".join(f"\n  | {line}" for line in lines[-_TAIL_LINES:]) or "\n  | (nothing)"
        return f"; the last it said:{last}\nthe whole log: {self.log}"

    def wait(self) -> None:
        """Wait until the server ends, which it should not.

        Raises:
            RunError: it has.
        """
        while True:
            self.require_running("while it was needed")
            time.sleep(_POLL_SECONDS)

    def stop(self, signals: StopSignals) -> None:
        """End all its processes: by SIGTERM, and by SIGKILL after a while, or at once when a further signal comes.

        The first process is told first, since it knows in which order its own are to end.
        """
        num, give_up = signals.num, time.monotonic() + STOP_SECONDS

        def patient() -> bool:
            return time.monotonic() < give_up and signals.num == num

        self._process.terminate()
        while self._process.poll() is None and patient():
            time.sleep(_STOP_POLL_SECONDS)
        self._send(signal.SIGTERM)
        while self._any_left() and patient():
            time.sleep(_STOP_POLL_SECONDS)
        if self._any_left():
            self._send(signal.SIGKILL)
        self._process.wait()

    def _any_left(self) -> bool:
        return self._process.poll() is None or self._send(0)

    def _send(self, number: int) -> bool:
        """Send a signal to the group; whether there is one. (A program's own children are in it, too.)"""
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of dead ones
            return False
        return True


@contextmanager
def serving(server: Server, model: Model, log: Path) -> Iterator[ServerProcess]:
    """Start a server, wait until it is healthy, and stop it at the end of the context.

    While the context is active, SIGINT, SIGTERM and SIGHUP raise StoppedError in it.

    Raises:
        InputError: it cannot run here, or its port is taken.
        RunError: it ended or was not ready in time; with the last lines of its log.
        StoppedError: a signal came.
    """
    command, environment = server.command(model), server.environment(model)
    server.prepare()
    _require_free(server.host, server.port)
    with StopSignals() as signals:
        process = ServerProcess(command, environment, log)
        try:
            signals.arm()
            _wait_until_healthy(server, process)
            yield process
        finally:
            signals.disarm()
            process.stop(signals)


def _wait_until_healthy(server: Server, process: ServerProcess) -> None:
    give_up = time.monotonic() + server.start_timeout_s
    while not is_healthy(base_url(server) + server.health):
        process.require_running("before it was ready")
        if time.monotonic() > give_up:
            raise RunError(
                f"the server was not ready after {server.start_timeout_s} seconds "
                f"(deployment.serving_config.start_timeout_s){process.told()}"
            )
        time.sleep(_POLL_SECONDS)


def _require_free(host: str, port: int) -> None:
    """Raise if another program listens there: it would answer in the server's place."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {host} cannot be used ({error.strerror}): end what uses it, or choose another, such "
                f"as deployment.serving_config.port={port + 1}"
            ) from error
