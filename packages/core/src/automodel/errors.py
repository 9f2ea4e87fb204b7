"""The two ways a command ends badly: the user's input is wrong (exit code 2), or the run failed (exit code 1)."""


class AutoModelError(Exception):
    """An expected failure, told to a person in one message and shown without a traceback."""

    exit_code = 1


class InputError(AutoModelError):
    """A recipe, option, file or data set is wrong; the message says what, where, what was found and what to do."""

    exit_code = 2


class RunError(AutoModelError):
    """A run with correct input failed (disk full, non-finite loss, a logger that refused, ...)."""
