"""`automodel checkpoints`: look at the checkpoints of a run, verify, compare and delete them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from automodel.checkpoint import directory, manifest
from automodel.errors import InputError, RunError

RUN = click.argument("run", metavar="DIR", callback=lambda _, __, value: local_directory(value))


@click.group()
def checkpoints() -> None:
    """List, show, verify, prune and compare the checkpoints of a run."""


@checkpoints.command("list")
@RUN
def list_(run: Path) -> None:
    """List the checkpoints of a run's directory DIR: step, time, size, validation metrics. Checksums are not read."""
    manifests = _manifests(run)
    best = directory.best({step: about for step, about in manifests.items() if about is not None})
    for step, path in _checkpoints(run):
        if (about := manifests[step]) is None:
            click.echo(f"step {step:<8}  damaged: its manifest cannot be read")
            continue
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((path / manifest.MANIFEST).stat().st_mtime))
        metrics = {name: value for name, value in about["metrics"].items() if name == "loss" or name.startswith("val_")}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        click.echo(f"step {step:<8}  {saved}  {_size(about):>9}  {shown}{'  (best)' if step == best else ''}")


@checkpoints.command()
@RUN
def show(run: Path) -> None:
    """Show one checkpoint: metrics, versions, files. DIR is a step_<n>, or a run's directory for its newest one."""
    path, about = _one(run)
    click.echo(f"{path}: step {about['step']}, {_size(about)}, recipe {about['recipe_digest'][:12]}")
    for title, values in (("metrics", about["metrics"]), ("versions", about["versions"])):
        click.echo(f"{title}:")
        for name, value in values.items():
            click.echo(f"  {name:<28}  {value if isinstance(value, str) else f'{value:.6g}'}")
    click.echo("files:")
    for name, file in about["files"].items():
        click.echo(f"  {file['size']:>14,}  {file['sha256'][:12]}  {name}")


@checkpoints.command()
@RUN
def verify(run: Path) -> None:
    """Read every file again and compare it with its checksum. DIR is a run's directory, or one step_<n>.

    Exit code 1, and what is wrong, if a checkpoint is damaged.
    """
    damaged = 0
    for path in [run] if directory.is_checkpoint(run) else [path for _, path in _checkpoints(run)]:
        found = manifest.problems(path)
        damaged += bool(found)
        click.echo(f"{path}: {'; '.join(found) if found else 'whole'}")
    if damaged:
        raise RunError(f"{damaged} of the checkpoints are damaged; a run goes on from the newest whole one")


@checkpoints.command()
@RUN
@click.option("--keep", type=click.IntRange(min=1), required=True, help="How many verified checkpoints stay.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
def prune(run: Path, keep: int, dry_run: bool) -> None:
    """Delete the oldest checkpoints of a run's directory DIR.

    Damaged ones do not count and stay; the best one stays if the run tracks a metric.
    """
    _checkpoints(run)
    best = directory.best({step: about for step, about in _manifests(run).items() if about is not None})
    kept = None if best is None else run / f"step_{best}"
    if dry_run:
        deleted = directory.superfluous(run, keep, best=kept)
    else:
        with directory.exclusive(run):
            deleted = directory.prune(run, keep, best=kept)
    for path in deleted:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {path}")
    if not deleted:
        click.echo("nothing to delete")


@checkpoints.command()
@click.argument("one", metavar="STEP", callback=lambda _, __, value: local_directory(value))
@click.argument("other", metavar="STEP", callback=lambda _, __, value: local_directory(value))
def diff(one: Path, other: Path) -> None:
    """Compare two checkpoints step_<n>: recipe, versions, metrics, and how far their models' tensors are apart."""
    (first, before), (second, after) = _one(one), _one(other)
    for path in (first, second):
        if found := manifest.problems(path):
            raise InputError(f"{path} is damaged: {'; '.join(found[:5])}")
        if not (path / "model").is_dir():
            raise InputError(f"{path} has no model/ to compare, since checkpoint.save_consolidated was false")
    from automodel.checkpoint.comparison import tensor_changes  # imports torch, after the paths are known to be good
    from automodel.training.train import load_recipe_data, recipe_changes

    recipes = [load_recipe_data(path / "recipe.yaml") for path in (first, second)]
    click.echo(f"recipe: {', '.join(sorted(recipe_changes(*recipes))) or 'the same'}")
    versions = before["versions"], after["versions"]
    changed = sorted(n for n in {*versions[0], *versions[1]} if versions[0].get(n) != versions[1].get(n))
    shown = ", ".join(f"{name} {versions[0].get(name, 'none')} -> {versions[1].get(name, 'none')}" for name in changed)
    click.echo(f"versions: {shown or 'the same'}")
    for name in sorted(before["metrics"].keys() & after["metrics"].keys()):
        if name == "loss" or name.startswith("val_"):
            click.echo(f"{name}: {before['metrics'][name]:.6g} -> {after['metrics'][name]:.6g}")
    for line in tensor_changes(first / "model", second / "model"):
        click.echo(line)


def local_directory(path: str) -> Path:
    """The directory; of an address in an object store a copy of the checkpoint, or of the run's newest and best.

    Raises:
        InputError: the store cannot be read.
    """
    from automodel.checkpoint.remote import local_copy

    return local_copy(path)


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    if found := directory.checkpoints(run):
        return found
    raise InputError(f"{run} {'holds no checkpoint (step_<n>)' if run.is_dir() else 'is no directory'}")


def _manifests(run: Path) -> dict[int, dict[str, Any] | None]:
    """The manifest of each step; None for one that cannot be read."""
    return {step: _manifest(path) for step, path in _checkpoints(run)}


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        return manifest.read_manifest(path)
    except (OSError, ValueError):
        return None


def _one(path: Path) -> tuple[Path, dict[str, Any]]:
    if not directory.is_checkpoint(path):
        path = _checkpoints(path)[-1][1]
    if (about := _manifest(path)) is None:
        raise InputError(f"{path} is damaged: its {manifest.MANIFEST} cannot be read")
    return path, about


def _size(about: dict[str, Any]) -> str:
    return f"{sum(file['size'] for file in about['files'].values()) / 1e6:,.1f} MB"
