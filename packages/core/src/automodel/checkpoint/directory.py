"""The directory of a run: checkpoints appear in it whole, are found by looking, and old ones leave."""

from __future__ import annotations

import fcntl
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from automodel.checkpoint import manifest
from automodel.errors import InputError, RunError
from automodel.notices import notice

_STEP = re.compile(r"step_(\d+)")
_REFUSED_RUST = re.compile(r"\(os error \d+\)")
_INCOMPLETE = ".incomplete"
SECONDS_TO_SEE = 20
"""For so long a network file system may not show what another machine has written, or a dead process hold a lock."""


def checkpoints(run_directory: Path) -> list[tuple[int, Path]]:
    """All checkpoints of a run, (step, path), oldest first. They are not verified."""
    if not run_directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in run_directory.iterdir() if (match := _STEP.fullmatch(path.name))]
    return sorted(found)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of one checkpoint, whole or not, rather than of a run."""
    return path.is_dir() and _STEP.fullmatch(path.name) is not None and not checkpoints(path)


def latest_verified(run_directory: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written, passing damaged ones over with a notice."""
    for _, path in reversed(checkpoints(run_directory)):
        if not (problems := manifest.problems(path)):
            return path
        notice(f"{path} is damaged and passed over: {'; '.join(problems[:3])}")
    return None


def begin(run_directory: Path, step: int) -> Path:
    """Make the empty directory that a checkpoint is written into before it is published.

    Raises:
        OSError: the file system refused.
    """
    unfinished = run_directory / f"step_{step}{_INCOMPLETE}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def flush(target: Path) -> None:
    """Bring everything below a directory to disk, its files readable by whoever may read the directory around it."""
    mode = stat.S_IMODE(target.parent.stat().st_mode) & 0o444
    for path in (*target.rglob("*"), target):
        if path.is_file():  # safetensors writes files that only their owner may read
            path.chmod(path.stat().st_mode | mode)
        sync(path)


def publish(unfinished: Path) -> Path:
    """Give a finished and flushed checkpoint its name `step_<n>`, at which it is found.

    Raises:
        OSError: the file system refused.
    """
    finished = unfinished.with_name(unfinished.name.removesuffix(_INCOMPLETE))
    replaced = finished.with_name(f"{finished.name}.replaced{_INCOMPLETE}")
    if finished.exists():  # a damaged one, or its run would have gone on from it
        finished.rename(replaced)
    unfinished.rename(finished)
    sync(finished.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return finished


@contextmanager
def saving(run_directory: Path, step: int) -> Iterator[None]:
    """Whatever interrupts a save leaves the other checkpoints as they were, and nothing of its own.

    Raises:
        RunError: the file system refused (disk full, ...).
    """
    try:
        yield
    except BaseException as error:  # DCP's CheckpointException is no Exception, and ctrl-c must leave no half either
        shutil.rmtree(run_directory / f"step_{step}{_INCOMPLETE}", ignore_errors=True)
        if (reason := _refusal(error)) is None:
            raise
        raise RunError(
            f"could not save the checkpoint of step {step}: {reason}; earlier checkpoints in {run_directory} are intact"
        ) from error


def best(manifests: Mapping[int, Mapping[str, Any]]) -> int | None:
    """The step of the best checkpoint by the metric that the newest one tracks; None if it tracks none.

    Args:
        manifests: by step. Those count that were validated as they were saved.
    """
    tracked = manifests[max(manifests)].get("metric_for_best_model") if manifests else None
    if not tracked:
        return None
    values = {
        step: about["metrics"][tracked["name"]]
        for step, about in sorted(manifests.items())
        if about.get("validated") and math.isfinite(about["metrics"].get(tracked["name"], math.nan))
    }
    if not values:
        return None
    return (max if tracked["greater_is_better"] else min)(values, key=lambda step: values[step])  # the first of equals


def superfluous(
    run_directory: Path, keep_last_n: int, just_saved: Path | None = None, best: Path | None = None
) -> list[Path]:
    """The oldest checkpoints, without which `keep_last_n` verified ones stay, and `best`.

    A damaged checkpoint does not count, so it never pushes a good one out; it is left for a person to look at.

    Args:
        run_directory: of the run.
        keep_last_n: at least 1.
        just_saved: known to be whole, and the newest whatever its number says.
        best: stays besides.
    """
    whole = [path for _, path in checkpoints(run_directory) if path != just_saved and _is_whole(path)]
    whole += [just_saved] if just_saved is not None else []
    return [path for path in whole[:-keep_last_n] if path != best]


def prune(
    run_directory: Path, keep_last_n: int, just_saved: Path | None = None, best: Path | None = None
) -> list[Path]:
    """Delete the `superfluous` checkpoints, and return them.

    Raises:
        RunError: the file system refused; the checkpoints that stay are whole.
    """
    deleted = superfluous(run_directory, keep_last_n, just_saved, best)
    for path in deleted:
        doomed = path.with_name(f"{path.name}{_INCOMPLETE}")  # a deletion that is cut short leaves no half checkpoint
        try:
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            saved = f"; {just_saved} is saved" if just_saved else ""
            raise RunError(f"could not delete the old checkpoint {path}: {error}{saved}") from error
    return deleted


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
    give_up = time.monotonic() + (SECONDS_TO_SEE if restarted else 0)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= give_up:
                return False
        time.sleep(0.2)


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


def sync(path: Path) -> None:
    """Bring a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
