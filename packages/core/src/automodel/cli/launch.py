"""`automodel launch`: hand a run to a cluster's scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from automodel.cli.options import RecipeCommand, recipe_options
from automodel.errors import InputError
from automodel.recipe import load_recipe

NEEDED = ("model", "dataset", "launcher")


@click.command(cls=RecipeCommand)
@click.argument("launcher")
@recipe_options
@click.option("--print-only", is_flag=True, help="Show what would be submitted, and submit nothing.")
def launch(
    launcher: str,
    config: tuple[str, ...],
    allow_target: tuple[str, ...],
    overrides: tuple[str, ...],
    print_only: bool,
) -> None:
    """Submit a run to a scheduler: `automodel launch slurm -c recipe.yaml`.

    The recipe's section `launcher` says on what; LAUNCHER is slurm, kubernetes, or a plugin's.
    """
    paths = [str(Path(path).resolve()) for path in config]
    words = [*overrides, f"launcher._target_={launcher}"]
    recipe = load_recipe(paths, words, allow_targets=allow_target, needs=NEEDED)
    target, checkpoint = recipe.target("launcher"), recipe.target("checkpoint")
    assert target is not None  # it is needed
    built: Any = target.build()
    command = ["train", *(word for path in paths for word in ("-c", path))]
    command += [word for package in allow_target for word in ("--allow-target", package)]
    command += words
    text = built.script(command, {path: Path(path).read_text(encoding="utf-8") for path in paths})
    if print_only:
        click.echo(text, nl=False)
        return
    if checkpoint is None:
        raise InputError("no plugin brings a section `checkpoint`, whose directory the job's script goes to")
    directory = Path(checkpoint.kwargs.get("checkpoint_dir", "./checkpoints"))
    click.echo(built.submit(text, directory / "launch"))
