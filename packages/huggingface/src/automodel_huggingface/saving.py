"""How models are saved when several processes run."""

from __future__ import annotations

from typing import Any


def save_where_called(module: Any) -> None:
    """Let `save_pretrained` write in whichever process calls it.

    transformers 5.23 writes in the first process only, whatever `is_main_process` says; here each process writes its
    layers of a sharded model, and the first to need a GGUF file converts it. test_parallel.py tells if that changes.
    """
    module.should_save_on_this_rank = _as_told


def _as_told(is_main_process: bool) -> bool:
    return is_main_process
