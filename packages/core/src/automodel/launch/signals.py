"""Signals that ask a run to end: noted when they come, obeyed after the step. The end of an agent is one."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill: SIGTERM in general, SIGUSR1 where Slurm is told to (`--signal=USR1@120`)."""

SAME_SECONDS = 5


def stop_with_agent() -> None:
    """Have this process asked to stop, as by SIGTERM, when the agent that started it is gone.

    It would train on unseen, and the same command would be refused as long as it does. Without an agent of ours, as
    under torchrun, nothing happens.
    """
    agent = int(os.environ.get("AUTOMODEL_AGENT", "0"))
    if agent == os.getppid():
        threading.Thread(target=_stop_without, args=(agent,), daemon=True).start()


def _stop_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


class StopRequest:
    """Notes, within its context, that a signal has come. Outside the main thread, where Python has none, it is inert.

    One that comes seconds later acts as it would without the context, so that a run that hangs can still be ended.
    Until then it is taken for the same: an agent passes on what its processes may have been sent as well.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._came = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._came = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._came > SAME_SECONDS:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
