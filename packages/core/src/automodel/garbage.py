"""Python's search for garbage, kept from what makes none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused(*, all_stays: bool = False) -> Iterator[None]:
    """No search for unreachable objects meanwhile; also a decorator.

    For imports and for the making of models, which leave hundreds of thousands of objects that all stay and that each
    search would go through again. That is a tenth of the time of importing torch and transformers.

    Args:
        all_stays: nothing that was made meanwhile is garbage, as with imports: it joins the oldest objects unsearched.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if all_stays and not gc.get_freeze_count():  # what others have frozen stays so
                gc.freeze()
                gc.unfreeze()
            gc.enable()
