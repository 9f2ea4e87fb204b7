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


@contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Within the block, transformers draws its progress bars only where a person watches."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
