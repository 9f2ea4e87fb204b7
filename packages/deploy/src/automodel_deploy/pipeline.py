"""From data to an answering endpoint: the stages of a pipeline, each done once for what it is made from."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
from automodel import InputError
from automodel.checkpoint.checkpointer import chosen_checkpoint
from automodel.checkpoint.manifest import MANIFEST, checksum
from automodel.errors import AutoModelError
from automodel.launch.agent import without_launch_options
from automodel.recipe import Recipe
from automodel.training.build import build_checkpointer
from automodel.training.train import AFTER_TRAINING

from automodel_deploy.commands.deploy import SECTION as SERVING
from automodel_deploy.commands.deploy import server_of
from automodel_deploy.registration import SECTION as REGISTRY
from automodel_deploy.served import EXPORT, exports_of, run_directory

RECORD = ".pipeline.json"
"""In the run's directory: the digest of each stage that is done. It stays on this machine, as what it tells of does."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StageFailedError(AutoModelError):
    """A stage has failed, or was stopped, and has said why itself."""

    def __init__(self, stage: str, exit_code: int) -> None:
        super().__init__(f"the stage `{stage}` did not finish, as it says above; the same command goes on from it")
        self.exit_code = exit_code


@dataclass
class Record:
    """The stages of a run that are done, on disk."""

    path: Path

    def is_done(self, stage: str, digest: str) -> bool:
        """Whether the stage was done with just what this digest is of."""
        try:
            done = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there, or torn by a power cut: the stages find out themselves
            return False
        return isinstance(done, dict) and done.get(stage) == digest

    def note(self, stage: str, digest: str) -> None:
        """Note that it is done."""
        done = {}
        if self.path.exists():
            try:
                done = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                done = {}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({**done, stage: digest}, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)


def run_pipeline(recipe: Recipe, words: Sequence[str], *, stop_after_answer: bool) -> None:
    """Train, validate, export, register and deploy, as far as the recipe has sections for it.

    Args:
        recipe: of all stages, checked.
        words: of the command line, without the verb: recipes, overrides, and how many processes train.
        stop_after_answer: end the server when it has answered.

    Raises:
        StageFailedError: a stage failed; those before it are done.
    """
    _check_later_stages(recipe)
    pipeline = _Pipeline(recipe, list(words), Record(run_directory(recipe) / RECORD))
    checkpoint = pipeline.train()
    pipeline.validate(checkpoint)
    if recipe.has(EXPORT):
        pipeline.export(checkpoint)
    at = [*without_launch_options(words), "--checkpoint", str(checkpoint)]
    if recipe.has(REGISTRY):  # which knows by itself what it has
        _run("register", ["register", *at])
    if recipe.has(SERVING):
        _run("deploy", ["deploy", *at, *(["--check"] if stop_after_answer else [])])


def _check_later_stages(recipe: Recipe) -> None:
    """Find out before training what hinders a later stage.

    Raises:
        InputError: a section contradicts itself, or what it needs is not here.
    """
    if not build_checkpointer(recipe).enabled:
        raise InputError("checkpoint.enabled is false: there would be nothing to validate, export or serve")
    for section in (EXPORT, REGISTRY):
        if recipe.has(section):
            recipe.targets[section].build()
    if recipe.has(SERVING):
        server = server_of(recipe)
        server.prepare()


@dataclass
class _Pipeline:
    recipe: Recipe
    words: list[str]
    record: Record

    def train(self) -> Path:
        """Train, and return the checkpoint to use."""
        before = {name: value for name, value in self.recipe.resolved().items() if name not in AFTER_TRAINING}
        holder, _, section = EXPORT.partition(".")
        before[holder] = {name: value for name, value in before.get(holder, {}).items() if name != section}
        run = self.record.path.parent
        try:
            checkpoint = chosen_checkpoint(run)
        except InputError:  # there is none yet, or none that is whole
            pass
        else:
            if self.record.is_done("train", _digest(before, _identity(checkpoint))):
                return _skipped("train", checkpoint)
        _run("train", ["train", *self.words])
        checkpoint = chosen_checkpoint(run)
        self.record.note("train", _digest(before, _identity(checkpoint)))
        return checkpoint

    def validate(self, checkpoint: Path) -> None:
        """Measure the checkpoint, whose files have been verified, on the validation data if there are any."""
        if not self.recipe.has("validation_dataset"):
            click.echo(f"validate: {checkpoint} is whole; the recipe has no validation_dataset to measure it on")
            return
        data = self.recipe.resolved()["validation_dataset"]
        digest = _digest(_identity(checkpoint), data, list(_files(data)))
        if self.record.is_done("validate", digest):
            _skipped("validate", checkpoint)
            return
        _run("validate", ["evaluate", *self.words, "--checkpoint", str(checkpoint)])
        self.record.note("validate", digest)

    def export(self, checkpoint: Path) -> None:
        """Export it, unless all its exports by these settings are there and whole."""
        if len(exports_of(self.recipe, checkpoint)) == len(set(self.recipe.targets[EXPORT].build().formats)):
            _skipped("export", checkpoint)
        else:
            _run("export", ["export", *without_launch_options(self.words), "--checkpoint", str(checkpoint)])


def _identity(checkpoint: Path) -> list[str]:
    return [checkpoint.name, checksum(checkpoint / MANIFEST)]


def _files(value: Any) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of the local files that a section names, also those of directories."""
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _files(child)
    elif isinstance(value, str) and (path := Path(value).expanduser()).exists():
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                about = file.stat()
                yield str(file), about.st_size, about.st_mtime_ns


def _skipped(stage: str, checkpoint: Path) -> Path:
    click.echo(f"{stage}: nothing has changed since it was done ({checkpoint})")
    return checkpoint


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _run(stage: str, words: list[str]) -> None:
    """Run a command of ours in a process of its own, whose memory is free again afterwards; pass signals on to it.

    Raises:
        StageFailedError: it failed.
    """
    click.echo(f"== {stage}")
    sys.stdout.flush()
    came: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if process is not None:
            # what a scheduler sends before it kills is understood by those that train; the others take it as an end
            trains = stage in ("train", "validate")
            process.send_signal(number if trains or number != signal.SIGUSR1 else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        # a session of its own: what a terminal sends to a whole group reaches it once, through us
        process = subprocess.Popen([sys.executable, "-m", "automodel", *words], start_new_session=True)
        for number in came:  # while it was being started
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise StageFailedError(stage, code if code > 0 else 128 - code)
