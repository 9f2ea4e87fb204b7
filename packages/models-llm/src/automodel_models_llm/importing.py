"""Imports of transformers, made safe for the threads that load a model and its tokenizer at the same time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_lock = RLock()


@contextmanager
def transformers_imports() -> Iterator[None]:
    """Let one thread at a time import parts of transformers.

    Its modules import each other in circles, and Python's per-module import locks give way to circles between
    threads by handing out half-initialised modules.
    """
    with _lock:
        yield


def quiet_unless_terminal() -> None:
    """Keep transformers from drawing progress bars, now and when a checkpoint is saved, where no person watches."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
