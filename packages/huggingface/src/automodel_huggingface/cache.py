"""The cache directory: finished directories that appear at once or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automodel import InputError


def cache_directory() -> Path:
    """`$AUTOMODEL_CACHE`, else `$XDG_CACHE_HOME/automodel`, else `~/.cache/automodel`."""
    if own := os.environ.get("AUTOMODEL_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "automodel"


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target` and rename it to `target` when the block ends well.

    Should another process have published the same target meanwhile, theirs stays.

    Raises:
        OSError: the directory cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield building
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Let one process of this machine at a time prepare `target`; the others find it ready when they come in.

    Raises:
        InputError: the directory cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        raise InputError(
            f"the cache directory {target.parent} cannot be written ({error.strerror}); "
            f"set AUTOMODEL_CACHE to a directory that can be written"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a killed process
        yield
