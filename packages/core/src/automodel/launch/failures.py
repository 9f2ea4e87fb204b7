"""An error of many processes is told once: by the first one that has it, the others' being its consequences."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

_store: Any = None


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
    """Whether this process has failed first, and so tells the error."""
    if not is_one_of_many():
        return True
    # another process that has failed as well ends before this one has spoken, and the agent then ends this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _store is None:  # the processes have not met
        return _is_first_on_this_machine()
    if int(os.environ.get("AUTOMODEL_AGENT", os.getppid())) != os.getppid():  # the agent is gone, and its store with it
        return os.environ.get("RANK") == "0"
    try:
        return int(_store.add("failed", 1)) == 1
    except Exception:  # whatever the store raises, it died with rank 0, which has told its own error
        return os.environ.get("RANK") == "0"


def _is_first_on_this_machine() -> bool:
    if "AUTOMODEL_AGENT_EXIT" not in os.environ:
        return os.environ.get("RANK") == "0"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        Path(os.environ["AUTOMODEL_AGENT_EXIT"]).with_name(f"told-{attempt}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def is_lost_connection(error: BaseException) -> bool:
    """Whether torch.distributed failed, as it does in every other process when one has gone.

    By the class's name, since torch takes seconds to import; gloo's errors have no class of their own.
    """
    if not (is_one_of_many() and isinstance(error, RuntimeError)):
        return False
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or "gloo" in str(error)


def end_agent(exit_code: int) -> None:
    """Ask the agent that started this process not to start it again: the error would be the same."""
    if (agent := os.environ.get("AUTOMODEL_AGENT")) and int(agent) == os.getppid():
        Path(os.environ["AUTOMODEL_AGENT_EXIT"]).write_text(str(exit_code), encoding="utf-8")
        os.kill(int(agent), signal.SIGTERM)
