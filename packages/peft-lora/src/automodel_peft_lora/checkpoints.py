"""Where the adapter of a run, a checkpoint or a PEFT directory is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from automodel import InputError
from automodel.checkpoint.checkpointer import find_checkpoint
from automodel.checkpoint.manifest import MANIFEST

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """An adapter and what lies around it.

    Args:
        adapter: the directory with `adapter_config.json` and `adapter_model.safetensors`.
        recipe: the recipe it was trained by, in a checkpoint of ours.
        state: the checkpoint's `state/`, if it is there.
    """

    adapter: Path
    recipe: Path | None = None
    state: Path | None = None

    def companions(self) -> list[Path]:
        """The files of tokenizer or processor that were saved with the adapter."""
        own = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md"}
        kept = {".json", ".jinja", ".model", ".txt"}
        return [path for path in sorted(self.adapter.iterdir()) if path.name not in own and path.suffix in kept]


def find_adapter(path: Path) -> Checkpoint:
    """The adapter at `path`: of a run's newest whole checkpoint, of a checkpoint, or the directory itself.

    Raises:
        InputError: there is none, it is damaged, or the checkpoint is of a run without adapters.
    """
    if not path.is_dir():
        raise InputError(f"--checkpoint: {path} is no directory")
    if (path / ADAPTER_CONFIG).exists() and not (path.parent / MANIFEST).exists():
        return _checked(Checkpoint(path))
    checkpoint = find_checkpoint(path.parent if (path / ADAPTER_CONFIG).exists() else path)
    model = checkpoint / "model"
    if not (model / ADAPTER_CONFIG).exists():
        if (model / "config.json").exists():
            raise InputError(f"{checkpoint} was trained without adapters: {model} is the whole model already")
        raise InputError(f"{checkpoint} holds no adapter: there is no {model / ADAPTER_CONFIG}")
    return _checked(Checkpoint(model, checkpoint / "recipe.yaml", checkpoint / "state"))


def _checked(found: Checkpoint) -> Checkpoint:
    if not (found.adapter / ADAPTER_WEIGHTS).exists():
        raise InputError(
            f"{found.adapter} has no {ADAPTER_WEIGHTS}; adapters in other formats are not read, since pickle runs code"
        )
    return found
