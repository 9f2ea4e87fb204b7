"""Directories of exported files: they appear whole or not at all, and are used again as long as they are whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automodel import InputError, RunError
from automodel.checkpoint import manifest
from automodel.checkpoint.directory import flush, sync
from safetensors import SafetensorError

_INCOMPLETE = ".incomplete"


@contextmanager
def building(directory: Path) -> Iterator[Path]:
    """Give an empty directory inside `directory`, which is removed at the end, for what is not finished.

    One process at a time is let in; others wait.

    Raises:
        RunError: the file system refused.
    """
    unfinished = directory / _INCOMPLETE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when it is closed, also by a killed process
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            with contextlib.suppress(OSError):  # nothing was published: leave no empty directories behind
                directory.rmdir()
                directory.parent.rmdir()
            os.close(descriptor)
    except (OSError, SafetensorError) as error:
        raise RunError(f"could not export to {directory}: {error}; nothing unfinished is left") from error


def publish(unfinished: Path, finished: Path) -> None:
    """Rename a directory with a manifest to its final name once all of it is on disk; replaces an older export."""
    flush(unfinished)
    replaced = unfinished.with_name(f"{unfinished.name}.replaced")
    if finished.exists():
        finished.rename(replaced)
    unfinished.rename(finished)
    sync(finished.parent)


def is_current(directory: Path, digest: str) -> bool:
    """Whether the directory is a whole export of these settings.

    Raises:
        InputError: it holds something that is no export, which is not overwritten.
    """
    if not directory.exists():
        return False
    if not directory.is_dir() or (any(directory.iterdir()) and not (directory / manifest.MANIFEST).exists()):
        raise InputError(f"{directory} exists and is no export (it has no {manifest.MANIFEST}); move it away")
    return not manifest.problems(directory) and manifest.read_manifest(directory).get("digest") == digest
