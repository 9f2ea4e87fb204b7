"""Saving and resuming: what a checkpoint holds, and which one a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from automodel.checkpoint import directory, manifest, state
from automodel.checkpoint.model_files import save_model
from automodel.environment import versions
from automodel.errors import InputError
from automodel.parallel.groups import wait_for_all
from automodel.parallel.process_group import is_first

if TYPE_CHECKING:
    from automodel.training.parts import Parts


@dataclass(frozen=True)
class Checkpointer:
    """Checkpoints in directories `step_<n>` that appear whole or not at all.

    Args:
        enabled: save checkpoints; metrics and the resolved recipe are written to the directory all the same.
        checkpoint_dir: the directory of the run.
        keep_last_n_checkpoints: how many verified checkpoints stay; null keeps all.
        model_save_format: of the model's files; only safetensors, which is never code.
        save_consolidated: write the Hugging Face directory `model/` beside the state that resuming needs.
        restore_from: a checkpoint, or a directory of them, to start from when the run's own directory has none.
    """

    enabled: bool = True
    checkpoint_dir: str = "./checkpoints"
    keep_last_n_checkpoints: int | None = None
    model_save_format: Literal["safetensors"] = "safetensors"
    save_consolidated: bool = True
    restore_from: str | None = None

    def __post_init__(self) -> None:
        if self.keep_last_n_checkpoints is not None and self.keep_last_n_checkpoints < 1:
            raise InputError(f"keep_last_n_checkpoints must be at least 1, not {self.keep_last_n_checkpoints}")

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        return Path(self.checkpoint_dir).expanduser()

    def save(self, parts: Parts, metrics: dict[str, float]) -> Path:
        """Write the checkpoint of the present step and delete the oldest ones.

        All processes call it and write their parts, into a directory that all of them see.

        Raises:
            RunError: the file system refused; earlier checkpoints are intact.
        """
        step = parts.progress.step
        with directory.publish(self.directory, step) as target:
            if self.save_consolidated:
                save_model(target / "model", parts.module, parts.processor)
            (target / "state").mkdir(exist_ok=True)
            wait_for_all()
            state.save_state(target / "state", parts)
            wait_for_all()
            if is_first():
                (target / "recipe.yaml").write_text(parts.recipe.dump(), encoding="utf-8")
                about = {"step": step, "metrics": metrics, "recipe_digest": parts.recipe.digest()}
                manifest.write_manifest(target, about | {"versions": versions()})
        saved = self.directory / f"step_{step}"
        if is_first() and self.keep_last_n_checkpoints is not None:
            directory.prune(self.directory, self.keep_last_n_checkpoints, just_saved=saved)
        return saved

    def find(self, resume: str) -> Path | None:
        """The checkpoint to start from: `auto`, `never` or a path, as `--resume` has it.

        Raises:
            InputError: the path holds no whole checkpoint, or `never` would mix two runs in one directory.
        """
        own = directory.checkpoints(self.directory)
        if resume == "never":
            if own and self.enabled:
                raise InputError(
                    f"--resume never: {self.directory} already holds {own[-1][1].name}, and a new run would mix with "
                    "it; choose another checkpoint.checkpoint_dir, or move the old one away"
                )
            return None
        if resume != "auto":
            return self._not_behind(find_checkpoint(resume), own)
        if own and (latest := directory.latest_verified(self.directory)):
            return latest
        if own:
            raise InputError(
                f"every checkpoint in {self.directory} is damaged; give a whole one with --resume PATH, or start anew "
                "in another checkpoint.checkpoint_dir"
            )
        return find_checkpoint(self.restore_from) if self.restore_from else None

    def _not_behind(self, chosen: Path, own: list[tuple[int, Path]]) -> Path:
        """Refuse to go back within the run's own directory: the newer checkpoints are of another future."""
        newest = own[-1][1] if own else None
        if newest and chosen.resolve().parent == self.directory.resolve() and chosen.name != newest.name:
            raise InputError(
                f"--resume {chosen}: {self.directory} also holds {newest.name}, and the two runs would mix; move the "
                "newer checkpoints away, or choose another checkpoint.checkpoint_dir"
            )
        return chosen


def find_checkpoint(path: str | Path) -> Path:
    """A verified checkpoint: `path` itself, or the newest one in it.

    Raises:
        InputError: there is none; says what is wrong with it.
    """
    path = Path(path).expanduser()
    if (path / manifest.MANIFEST).exists() or (path / "state").exists():
        if problems := manifest.problems(path):
            raise InputError(f"the checkpoint {path} is damaged: {'; '.join(problems[:5])}")
        return path
    if latest := directory.latest_verified(path):
        return latest
    there = "is no directory" if not path.is_dir() else "holds no whole checkpoint (step_<n>)"
    raise InputError(f"no checkpoint to resume from: {path} {there}")
