"""Whether all processes of a run see its directory."""

from __future__ import annotations

import time
from pathlib import Path

from automodel.checkpoint.directory import SECONDS_TO_SEE
from automodel.errors import InputError
from automodel.parallel.groups import by_first, gathered


def require_shared(run_directory: Path) -> None:
    """Check that all processes see the directory that the first one holds by `exclusive`.

    Raises:
        InputError: some do not: on another machine it is another directory. All processes raise it.
    """
    lock = run_directory / ".lock"
    holder = by_first(lambda: lock.read_text(encoding="utf-8"))
    give_up = time.monotonic() + SECONDS_TO_SEE
    while not (seen := lock.is_file() and lock.read_text(encoding="utf-8") == holder) and time.monotonic() < give_up:
        time.sleep(0.5)
    if blind := [str(rank) for rank, sees in enumerate(gathered(seen)) if not sees]:
        raise InputError(
            f"checkpoint.checkpoint_dir: {run_directory} is not the same directory on all machines (rank "
            f"{', '.join(blind)} does not see that of rank 0); choose one on a file system that all of them share"
        )
