"""The ways a command ends early: its input is wrong (exit code 2), the run failed (1), or a signal came (128 + it)."""

import signal


class AutoModelError(Exception):
    """An expected failure, told to a person in one message and shown without a traceback."""

    exit_code = 1


class InputError(AutoModelError):
    """A recipe, option, file or data set is wrong; the message says what, where, what was found and what to do."""

    exit_code = 2


class RunError(AutoModelError):
    """A run with correct input failed (disk full, non-finite loss, a logger that refused, ...)."""


class StoppedError(AutoModelError):
    """A run ends because a signal asked it to, with nothing lost. The exit code is 128 + the signal, as in shells."""

    def __init__(self, message: str, by: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = 128 + by
