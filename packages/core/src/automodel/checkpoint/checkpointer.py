"""Saving and resuming: what a checkpoint holds, and which one a run goes on from."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, cast

import torch.distributed as dist

from automodel.checkpoint import directory, manifest
from automodel.checkpoint.remote import Remote, is_remote, local_copy
from automodel.checkpoint.snapshot import Snapshot, take, write
from automodel.checkpoint.verification import Reference, problems_on_disk, reference
from automodel.errors import InputError
from automodel.interfaces import Batch
from automodel.parallel.groups import by_first, wait_for_all
from automodel.parallel.process_group import is_first

if TYPE_CHECKING:
    from automodel.training.parts import Parts


@dataclass
class Checkpointer:
    """Checkpoints in directories `step_<n>` that appear whole or not at all.

    Args:
        enabled: save checkpoints; metrics and the resolved recipe are written to the directory all the same.
        checkpoint_dir: the directory of the run; also in an object store (`s3://bucket/run`, `gs://...`), to which each
            checkpoint is copied when it is finished.
        save_interval_steps: save after every so many steps, and after the last; null takes
            step_scheduler.ckpt_every_steps.
        keep_last_n_checkpoints: how many verified checkpoints stay, and the best one besides; null keeps all.
        validate_on_save: before a checkpoint counts, read it again and compare checksums, tensors bit for bit, and the
            answer of the model that was loaded from it. One that fails is told and not kept; the run goes on.
        async_: train on while files are written, from a copy of model and optimizer in the CPU's memory.
        metric_for_best_model: a metric of validation (`val_loss`) by which the best checkpoint is kept and exported.
            The model is then validated before each regular save.
        greater_is_better: whether more of that metric is better; null is false for a name that ends in `loss`.
        model_save_format: of the model's files; only safetensors, which is never code.
        save_consolidated: write the Hugging Face directory `model/` beside the state that resuming needs.
        restore_from: a checkpoint, or a directory of them, to start from when the run's own directory has none.
        local_dir: where the files of a run in an object store lie on this machine; null is a directory in the user's
            cache. Of a run on several machines all must see it.
    """

    enabled: bool = True
    checkpoint_dir: str = "./checkpoints"
    save_interval_steps: int | None = None
    keep_last_n_checkpoints: int | None = None
    validate_on_save: bool = False
    async_: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    model_save_format: Literal["safetensors"] = "safetensors"
    save_consolidated: bool = True
    restore_from: str | None = None
    local_dir: str | None = None
    _pending: _Pending | None = field(default=None, init=False, repr=False)
    _group: dist.ProcessGroup | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("keep_last_n_checkpoints", "save_interval_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.greater_is_better is not None and self.metric_for_best_model is None:
            raise InputError("greater_is_better says nothing without metric_for_best_model")
        if self.local_dir is not None and self.remote is None:
            raise InputError("local_dir is for a checkpoint_dir in an object store (s3://...); leave it out")

    @property
    def directory(self) -> Path:
        """The directory of the run on this machine."""
        if (remote := self.remote) is None:
            return Path(self.checkpoint_dir).expanduser()
        return Path(self.local_dir).expanduser() if self.local_dir else remote.default_local_directory()

    @property
    def remote(self) -> Remote | None:
        """The directory of the run in an object store, if it is there."""
        return Remote(self.checkpoint_dir) if is_remote(self.checkpoint_dir) else None

    @property
    def more_is_better(self) -> bool:
        """Whether more of `metric_for_best_model` is better."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not (self.metric_for_best_model or "").endswith("loss")

    def save(
        self, parts: Parts, metrics: dict[str, float], batch: Batch, *, validated: bool, wait: bool
    ) -> Path | None:
        """Save the present step. All processes call it, and write into a directory that all of them see.

        Args:
            parts: of the run.
            metrics: for the manifest.
            batch: a micro-batch of this process, to compare answers by.
            validated: the metrics of validation are those of this very step.
            wait: return when the checkpoint is there, although the recipe says `async`.

        Returns:
            The checkpoint; None while it is being written (`finish` gives it), or if it was not as it should be.

        Raises:
            RunError: the file system refused; earlier checkpoints are intact.
        """
        about = {"metrics": metrics, "validated": validated, "metric_for_best_model": self._tracked()}
        with directory.saving(self.directory, parts.progress.step):
            snapshot = take(parts, about, with_model=self.save_consolidated, copied=self.async_ and not wait)
            said = reference(parts, batch) if self.validate_on_save else None
            target = by_first(lambda: directory.begin(self.directory, snapshot.step))
            if not snapshot.is_copy:
                write(snapshot, target, parts)
                return self._publish(target, snapshot, said, parts)
            if self._group is None and dist.is_initialized():
                # not the default group: what the run sends meanwhile would get between
                self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
            self._pending = _Pending(snapshot, said, target)
            self._pending.start(parts, self._group)
        return None

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint has been begun that `finish` must finish."""
        return self._pending is not None

    @property
    def is_written(self) -> bool:
        """Whether the files of a checkpoint have been written that `finish` must finish. False if there is none."""
        return self._pending is not None and not self._pending.thread.is_alive()

    def finish(self, parts: Parts) -> Path | None:
        """Wait until the checkpoint that is being written is there, and return it. All processes call it together.

        Raises:
            RunError: the file system refused; earlier checkpoints are intact.
        """
        pending, self._pending = self._pending, None
        assert pending is not None
        with directory.saving(self.directory, pending.snapshot.step):
            pending.wait()
            return self._publish(pending.target, pending.snapshot, pending.said, parts)

    def _publish(self, target: Path, snapshot: Snapshot, said: Reference | None, parts: Parts) -> Path | None:
        """Let a checkpoint count that is written, unless it is not as it should be."""
        if said is not None and (found := problems_on_disk(target, snapshot, said, parts)):
            if is_first():
                shutil.rmtree(target)
                more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
                print(
                    f"warning: the checkpoint of step {snapshot.step} was not written as it should be and is not kept: "
                    f"{'; '.join(found[:3])}{more}. Earlier ones are intact and the run goes on; look at the disk",
                    file=sys.stderr,
                    flush=True,
                )
            wait_for_all()
            return None
        saved = by_first(lambda: directory.publish(target))
        if is_first():
            keep, best = self.keep_last_n_checkpoints, best_checkpoint(self.directory)
            if keep is not None:
                directory.prune(self.directory, keep, just_saved=saved, best=best)
            if (remote := self.remote) is not None:
                remote.push(self.directory)
                if keep is not None:
                    remote.prune(keep, just_saved=saved, best=best)
        return saved

    def _tracked(self) -> dict[str, Any] | None:
        if self.metric_for_best_model is None:
            return None
        return {"name": self.metric_for_best_model, "greater_is_better": self.more_is_better}

    def find(self, resume: str) -> Path | None:
        """The checkpoint to start from: `auto`, `never` or a path, as `--resume` has it.

        Raises:
            InputError: the path holds no whole checkpoint, `never` would mix two runs in one directory, or the object
                store cannot be read.
        """
        if (remote := self.remote) is not None:
            remote.fetch(self.directory)
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


class _Pending:
    """A checkpoint that is being written."""

    def __init__(self, snapshot: Snapshot, said: Reference | None, target: Path) -> None:
        self.snapshot, self.said, self.target = snapshot, said, target
        self.error: BaseException | None = None
        self.thread = Thread()

    def start(self, parts: Parts, group: dist.ProcessGroup | None) -> None:
        """Begin to write, beside what this process goes on with."""

        def run() -> None:
            try:
                write(self.snapshot, self.target, parts, group)
            except BaseException as error:  # raised where the run waits; DCP's CheckpointException is no Exception
                self.error = error

        # a daemon: a process that ends by an error of its own does not wait for others that may be gone
        self.thread = Thread(target=run, name="checkpoint", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Return when everything is written; raises what hindered it."""
        self.thread.join()
        if self.error is not None:
            raise self.error


def best_checkpoint(run_directory: Path) -> Path | None:
    """The best checkpoint of a run that tracks a metric; None for other runs. Its files are not verified."""
    manifests = {}
    for step, path in directory.checkpoints(run_directory):
        with suppress(OSError, ValueError):  # a damaged one
            manifests[step] = manifest.read_manifest(path)
    best = directory.best(manifests)
    return None if best is None else run_directory / f"step_{best}"


def chosen_checkpoint(path: str | Path) -> Path:
    """A verified checkpoint to use: `path` itself, or the best one in it if its run tracks a metric, or the newest.

    Raises:
        InputError: there is none; says what is wrong with it.
    """
    path = local_copy(path)
    best = best_checkpoint(path)
    return find_checkpoint(best if best is not None and not manifest.problems(best) else path)


def find_checkpoint(path: str | Path) -> Path:
    """A verified checkpoint: `path` itself, or the newest one in it. One in an object store is fetched.

    Raises:
        InputError: there is none; says what is wrong with it.
    """
    path = local_copy(path)
    if (path / manifest.MANIFEST).exists() or (path / "state").exists():
        if problems := manifest.problems(path):
            raise InputError(f"the checkpoint {path} is damaged: {'; '.join(problems[:5])}")
        return path
    if latest := directory.latest_verified(path):
        return latest
    there = "is no directory" if not path.is_dir() else "holds no whole checkpoint (step_<n>)"
    raise InputError(f"there is no checkpoint: {path} {there}")
