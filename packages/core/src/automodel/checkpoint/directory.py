"""The directory of a run: checkpoints appear in it whole, are found by looking, and old ones leave."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from automodel.checkpoint import manifest
from automodel.errors import InputError, RunError
from automodel.notices import notice
from automodel.parallel.groups import by_first, gathered, wait_for_all
from automodel.parallel.process_group import is_first

_STEP = re.compile(r"step_(\d+)")
_REFUSED_RUST = re.compile(r"\(os error \d+\)")
_INCOMPLETE = ".incomplete"
_SECONDS_TO_SEE = 20
"""For so long a network file system may not show what another machine has written, or a dead process hold a lock."""


def checkpoints(run_directory: Path) -> list[tuple[int, Path]]:
    """All checkpoints of a run, (step, path), oldest first. They are not verified."""
    if not run_directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in run_directory.iterdir() if (match := _STEP.fullmatch(path.name))]
    return sorted(found)


def latest_verified(run_directory: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written, passing damaged ones over with a notice."""
    for _, path in reversed(checkpoints(run_directory)):
        if not (problems := manifest.problems(path)):
            return path
        notice(f"{path} is damaged and passed over: {'; '.join(problems[:3])}")
    return None


@contextmanager
def publish(run_directory: Path, step: int) -> Iterator[Path]:
    """Give an empty directory to write a checkpoint into; it becomes `step_<n>` when all is on disk.

    All processes of a run enter and leave it together; the first one makes the directory and publishes it.

    Whatever interrupts the writing leaves the other checkpoints as they were.

    Raises:
        RunError: the file system refused (disk full, ...); what was written is removed.
    """
    unfinished, finished = run_directory / f"step_{step}{_INCOMPLETE}", run_directory / f"step_{step}"
    try:
        if is_first():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        wait_for_all()
        yield unfinished
        if not is_first():
            wait_for_all()
            return
        for path in (*unfinished.rglob("*"), unfinished):
            if path.is_file():  # safetensors writes files that only their owner may read
                path.chmod(path.stat().st_mode | stat.S_IMODE(run_directory.stat().st_mode) & 0o444)
            _flush(path)
        replaced = run_directory / f"step_{step}.replaced{_INCOMPLETE}"
        if finished.exists():  # a damaged one, or its run would have gone on from it
            finished.rename(replaced)
        unfinished.rename(finished)
        _flush(run_directory)
        shutil.rmtree(replaced, ignore_errors=True)
        wait_for_all()
    except BaseException as error:  # DCP's CheckpointException is no Exception, and ctrl-c must leave no half either
        shutil.rmtree(unfinished, ignore_errors=True)
        if (reason := _refusal(error)) is None:
            raise
        raise RunError(
            f"could not save the checkpoint of step {step}: {reason}; earlier checkpoints in {run_directory} are intact"
        ) from error


def prune(run_directory: Path, keep_last_n: int, just_saved: Path) -> None:
    """Delete the oldest checkpoints so that `keep_last_n` verified ones stay.

    A damaged checkpoint does not count, so it never pushes a good one out; it is left for a person to look at.

    Raises:
        RunError: the file system refused; the checkpoint just saved is whole.
    """
    earlier = [path for _, path in checkpoints(run_directory) if path != just_saved and _is_whole(path)]
    for path in earlier[: max(0, len(earlier) - (keep_last_n - 1))]:
        doomed = path.with_name(f"{path.name}{_INCOMPLETE}")  # a deletion that is cut short leaves no half checkpoint
        try:
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise RunError(f"could not delete the old checkpoint {path}: {error}; {just_saved} is saved") from error


@contextmanager
def exclusive(run_directory: Path) -> Iterator[None]:
    """Create the directory of a run and keep other runs out of it until the end of the context.

    A directory that this made and nothing was written to is removed again.

    Raises:
        InputError: it cannot be written, or another run is using it.
    """
    lock = run_directory / ".lock"
    made = [path for path in (run_directory, *run_directory.parents) if not path.exists()]
    with _writable(run_directory):
        run_directory.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    with file:
        if not _locked(file):
            file.seek(0)
            raise InputError(
                f"another run (process {file.read().strip() or '?'}) is writing to {run_directory}; "
                "wait for it, or choose another checkpoint.checkpoint_dir"
            )
        try:
            with _writable(run_directory):
                for path in run_directory.glob(f"step_*{_INCOMPLETE}"):  # first, since it makes room on a full disk
                    shutil.rmtree(path)
                lock.write_text(str(os.getpid()), encoding="utf-8")
            yield
        finally:
            if made and [path.name for path in run_directory.iterdir()] == [lock.name]:
                lock.unlink()
                for path in made:
                    path.rmdir()


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Tell of a file of the run that cannot be written in the context by one message.

    Raises:
        RunError: the file system refused (disk full, ...).
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"could not write {path}: {error.strerror}; checkpoints are intact, and the same command goes on from them"
        ) from error


@contextmanager
def _writable(run_directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"checkpoint.checkpoint_dir: cannot write to {run_directory} ({error.strerror}); choose another directory"
        ) from error


def _locked(file: IO[str]) -> bool:
    """Whether this process got the lock; one that was started again waits for what is left of the one before."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    give_up = time.monotonic() + (_SECONDS_TO_SEE if restarted else 0)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= give_up:
                return False
        time.sleep(0.2)


def require_shared(run_directory: Path) -> None:
    """Check that all processes see the directory that the first one holds by `exclusive`.

    Raises:
        InputError: some do not: on another machine it is another directory. All processes raise it.
    """
    lock = run_directory / ".lock"
    holder = by_first(lambda: lock.read_text(encoding="utf-8"))
    give_up = time.monotonic() + _SECONDS_TO_SEE
    while not (seen := lock.is_file() and lock.read_text(encoding="utf-8") == holder) and time.monotonic() < give_up:
        time.sleep(0.5)
    if blind := [str(rank) for rank, sees in enumerate(gathered(seen)) if not sees]:
        raise InputError(
            f"checkpoint.checkpoint_dir: {run_directory} is not the same directory on all machines (rank "
            f"{', '.join(blind)} does not see that of rank 0); choose one on a file system that all of them share"
        )


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint's files are as they were written; a process reads each checkpoint once to know."""
    return _was_whole(path, path.stat().st_mtime_ns)


@cache
def _was_whole(path: Path, made: int) -> bool:
    """By when its directory was made: a damaged checkpoint may have been saved again."""
    return not manifest.problems(path)


def _refusal(error: BaseException) -> str | None:
    """How the file system refused, as itself or by safetensors', tokenizers' or torch DCP's words; None otherwise."""
    match type(error).__name__:
        case "CheckpointException":  # holds each rank's error, and prints them with their tracebacks
            # the class is matched by name because its module takes seconds to import, so mypy sees BaseException
            first, _ = next(iter(error.failures.values()))  # type: ignore[attr-defined]
            return str(first)
        case "SafetensorError":
            return str(error)
    # what is written in Rust has its own errors; tokenizers raises them as a plain Exception
    return str(error) if isinstance(error, OSError) or _REFUSED_RUST.search(str(error)) else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
