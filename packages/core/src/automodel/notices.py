"""Notices: what a person should know although the run goes on. Said once each; under --strict they are errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from automodel.errors import InputError

_said: set[str] = set()
_strict = False


def notice(message: str) -> None:
    """Print `note: <message>` on standard error, once per process and on the first rank only.

    Use it for a fallback or anything else that changes what the recipe asked for.

    Raises:
        InputError: the run is strict.
    """
    if _strict:
        raise InputError(f"{message} (an error because of --strict)")
    if message not in _said and os.environ.get("RANK", "0") == "0":
        print(f"note: {message}", file=sys.stderr, flush=True)
    _said.add(message)


@contextmanager
def strictness(strict: bool) -> Iterator[None]:
    """Within this context, notices are errors if `strict`, and are said anew."""
    global _strict
    before, _strict = _strict, strict
    _said.clear()
    try:
        yield
    finally:
        _strict = before
