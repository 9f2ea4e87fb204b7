"""`automodel train` from Python: check the recipe, build the parts, run the loop."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automodel import plugins
from automodel.checkpoint import directory
from automodel.checkpoint.checkpointer import Checkpointer
from automodel.checkpoint.manifest import read_manifest
from automodel.checkpoint.shared import require_shared
from automodel.checkpoint.state import load_state
from automodel.environment import versions
from automodel.errors import InputError, RunError
from automodel.notices import notice, strictness
from automodel.parallel.groups import by_first
from automodel.parallel.process_group import is_first
from automodel.recipe import Recipe, load_recipe
from automodel.training.build import build_checkpointer, build_data, build_parts, processes
from automodel.training.console import ConsoleProgress
from automodel.training.loop import fit
from automodel.training.metrics import MetricsFile
from automodel.training.parts import Parts
from automodel.training.profile import StepProfiler


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Args:
        directory: the run's directory: metrics.jsonl, recipe.yaml, checkpoints.
        checkpoint: the newest checkpoint, or None when none is kept.
        step: optimizer steps done.
        metrics: the last value of every metric.
    """

    directory: Path
    checkpoint: Path | None
    step: int
    metrics: Mapping[str, float]


def train(
    recipe: str | Path | Sequence[str | Path],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    resume: str = "auto",
    strict: bool = False,
    profile: bool = False,
    allow_targets: Sequence[str] = (),
) -> TrainResult:
    """Fine-tune as a recipe says; the same as `automodel train -c recipe.yaml`.

    Args:
        recipe: one recipe file or several, the later ones over the earlier ones.
        overrides: `{"optimizer.lr": 1e-4}`, or the command line's `["optimizer.lr=1e-4"]`.
        resume: `auto` goes on from the newest whole checkpoint of the run's directory, a path from that one, `never`
            starts anew.
        strict: fallbacks are errors.
        profile: print where a few steps spend their time; `profile` in the run's directory gets that and a trace.
        allow_targets: packages outside AutoModel's own list whose callables the recipe may name.

    Raises:
        InputError: the recipe, the data or the model it names is wrong; nothing was written.
        RunError: the run failed.
    """
    paths = [recipe] if isinstance(recipe, str | Path) else list(recipe)
    checked = load_recipe(paths, overrides, allow_targets=allow_targets)
    with strictness(strict):
        return run_recipe(checked, resume, profile=profile)


def run_recipe(recipe: Recipe, resume: str = "auto", *, profile: bool = False) -> TrainResult:
    """Build a checked recipe's parts, resume if there is something to resume from, and train.

    All processes of a run call it; the first one writes the run's directory and speaks for all.
    """
    with processes(recipe) as device:
        return _run(recipe, resume, profile, device)


def _run(recipe: Recipe, resume: str, profile: bool, device: torch.device) -> TrainResult:
    checkpointer = build_checkpointer(recipe)
    data = build_data(recipe, device)
    manager = plugins.installed().manager
    with directory.exclusive(checkpointer.directory) if is_first() else nullcontext():
        require_shared(checkpointer.directory)
        start = by_first(lambda: checkpointer.find(resume))
        parts = build_parts(recipe, data, checkpointer, manager, device)
        if start is not None:
            load_state(start / "state", parts)
            parts.run.step = parts.progress.step
            parts.run.summary.update(read_manifest(start)["metrics"])
            _tell_resumed(parts, start)
        if is_first():
            _describe_run(parts)
        # called in reverse order: a profile is told after its last step
        watching = [*([StepProfiler(parts)] if profile else []), ConsoleProgress(), MetricsFile(), *parts.loggers]
        with _registered(manager, watching if is_first() else []):
            try:
                # a CPU gains nothing by it, and a profile is of whole steps
                fit(parts, ahead=device.type != "cpu" and not profile)
            except BaseException as error:  # loggers should see ctrl-c as well
                parts.hooks.exception(error=error, run=parts.run)
                if isinstance(error, torch.OutOfMemoryError):
                    raise RunError(_out_of_memory(parts, error)) from error
                raise
            finally:
                parts.hooks.fit_end(run=parts.run)
                _push(checkpointer)
        saved = directory.checkpoints(checkpointer.directory)
        return TrainResult(
            checkpointer.directory, saved[-1][1] if saved else None, parts.progress.step, dict(parts.run.summary)
        )


def _push(checkpointer: Checkpointer) -> None:
    """Bring the run's last lines to the object store; of two failures the run's own is the one to tell."""
    if not is_first() or checkpointer.remote is None:
        return
    failed = sys.exception() is not None
    try:
        checkpointer.remote.push(checkpointer.directory)
    except RunError as error:
        if not failed:
            raise
        print(f"warning: {error}", file=sys.stderr, flush=True)


@contextmanager
def _registered(manager: Any, loggers: list[object]) -> Iterator[None]:
    """Let the run's loggers hear its hooks."""
    for logger in loggers:
        manager.register(logger)
    try:
        yield
    finally:
        for logger in loggers:
            manager.unregister(logger)


def _tell_resumed(parts: Parts, checkpoint: Path) -> None:
    done = parts.num_steps is not None and parts.progress.step >= parts.num_steps
    before = load_recipe_data(checkpoint / "recipe.yaml")
    free = {
        "checkpoint",
        "checkpoint_management",
        "distributed",
        "dist_env",
        "launcher",
        *(logger.path[0] for logger in parts.recipe.sections_of("logger")),
        *AFTER_TRAINING,
    }
    changed = sorted(
        key
        for key in recipe_changes(before, parts.recipe.resolved())
        if key not in _FREE_TO_CHANGE and key.partition(".")[0] not in free
    )
    if changed and done:
        raise InputError(
            f"all steps of {checkpoint} are done, but the recipe has changed since ({', '.join(changed)}): give "
            "another checkpoint.checkpoint_dir to train anew, or more step_scheduler.max_steps to train on"
        )
    if is_first():
        done_text = "; all its steps are done, nothing to train" if done else ""
        print(f"resuming from {checkpoint}{done_text}", flush=True)
    if changed:
        notice(f"the recipe has changed since {checkpoint}: {', '.join(changed)}")


AFTER_TRAINING = ("deployment", "model_registry")
"""Sections of what is done with a trained model."""

_FREE_TO_CHANGE = {
    f"step_scheduler.{key}" for key in ("max_steps", "num_epochs", "val_every_steps", "ckpt_every_steps")
}


def load_recipe_data(path: Path) -> Any:
    """The plain data of a resolved recipe."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def recipe_changes(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if before != after:
            yield prefix
        return
    for key in before.keys() | after.keys():
        yield from recipe_changes(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))


def _out_of_memory(parts: Parts, error: Exception) -> str:
    return (
        f"{parts.device} ran out of memory in step {parts.progress.step + 1}: {str(error).splitlines()[0]} A smaller "
        "dataloader.batch_size with more step_scheduler.grad_acc_steps, training.activation_checkpointing: true or "
        "distributed: {_target_: fsdp2} need less; `automodel plan` says how much"
    )


def _describe_run(parts: Parts) -> None:
    """Write the resolved recipe and what the run is made with into its directory."""
    about = {"recipe_digest": parts.recipe.digest(), "versions": versions()}
    files = {"recipe.yaml": parts.recipe.dump(), "environment.json": json.dumps(about, indent=1) + "\n"}
    for name, text in files.items():
        path = parts.run.directory / name
        with directory.written(path):
            path.write_text(text, encoding="utf-8")
