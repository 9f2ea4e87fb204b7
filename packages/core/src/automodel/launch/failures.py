"""An error of many processes is told once: by the first one that has it, the others' being its consequences."""

from __future__ import annotations

import os
import signal
from typing import Any

_store: Any = None
_LOST = ("connection", "broken pipe", "timed out", "timeout", "nccl", "socket", "peer")


def remember_store(store: Any) -> None:
    """Keep the torch.distributed store in which processes note that one of them has failed."""
    global _store
    _store = store


def is_one_of_many() -> bool:
    """Whether this is one of several processes of a run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def prefix() -> str:
    """`rank 2: `, in a run of several processes."""
    return f"rank {os.environ.get('RANK')}: " if is_one_of_many() else ""


def is_ours_to_tell(error: BaseException) -> bool:
    """Whether this process has failed first, and so tells the error.

    Before the processes have met, they all read the same recipe and have the same errors: the first one tells them.
    """
    if not is_one_of_many():
        return True
    if _store is None:
        return os.environ.get("RANK") == "0"
    try:
        return int(_store.add("failed", 1)) == 1
    except Exception:  # whatever the store raises, it died with the process that held it
        return not is_lost_connection(error)


def is_lost_connection(error: BaseException) -> bool:
    """Whether another process has gone while this one waited for it. Backends tell by their own words only."""
    return is_one_of_many() and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


def end_agent(exit_code: int) -> None:
    """Ask the agent that started this process not to start it again: the error would be the same."""
    if (agent := os.environ.get("AUTOMODEL_AGENT")) and int(agent) == os.getppid():
        with open(os.environ["AUTOMODEL_AGENT_EXIT"], "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(str(exit_code))
        os.kill(int(agent), signal.SIGTERM)
