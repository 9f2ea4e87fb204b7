"""Signals that ask a run to end: noted when they come, obeyed after the step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill: SIGTERM in general, SIGUSR1 where Slurm is told to (`--signal=USR1@120`)."""


class StopRequest:
    """Notes, within its context, that a signal has come. Outside the main thread, where Python has none, it is inert.

    A second one acts as it would without the context, so that a run that hangs can still be ended.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, self._before[self.signal])
