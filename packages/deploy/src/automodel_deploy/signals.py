"""Signals that end a server: noted at any time, and obeyed where nothing can get lost by it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from automodel.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a service manager, a terminal that closes."""


class StopSignals:
    """Within its context a signal raises StoppedError while it is armed, and is only counted while it is not.

    A signal that this process was started to ignore (by nohup, say) stays ignored. Outside the main thread, where
    Python has no signals, it is inert.
    """

    def __init__(self) -> None:
        self.num = 0
        self._armed = False
        self._came: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            obeyed = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in obeyed}
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def arm(self) -> None:
        """From here on a signal raises, also one that has come already.

        Raises:
            StoppedError: one has come.
        """
        self._armed = True
        self._raise()

    def disarm(self) -> None:
        """From here on signals are counted."""
        self._armed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.num += 1
        self._came = signal.Signals(number)
        self._raise()

    def _raise(self) -> None:
        if self._armed and self._came is not None:
            self._armed = False  # the second one must not cut short what the first one makes necessary
            raise StoppedError(f"stopped by {self._came.name}", self._came)
