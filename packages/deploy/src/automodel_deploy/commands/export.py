"""`automodel export`: a trained model becomes files for serving."""

from __future__ import annotations

import click
from automodel.cli.options import RecipeCommand, recipe_options
from automodel.recipe import load_recipe

SECTION = "checkpoint_management.export_config"


@click.command(cls=RecipeCommand)
@recipe_options
@click.option(
    "--checkpoint",
    metavar="PATH",
    help="A checkpoint, or the directory of a run, whose newest whole checkpoint is taken. The recipe's "
    "checkpoint.checkpoint_dir without.",
)
def export(
    config: tuple[str, ...], allow_target: tuple[str, ...], overrides: tuple[str, ...], checkpoint: str | None
) -> None:
    """Write a trained model as files for serving, and verify that they say what it says.

    The recipe's section checkpoint_management.export_config names formats and optimisation level.
    """
    recipe = load_recipe(config, overrides, allow_targets=allow_target)
    target, saved = recipe.target(SECTION), recipe.target("checkpoint")
    assert target is not None and saved is not None  # their kinds have defaults
    from automodel_deploy.export import export_checkpoint  # imports torch, after the recipe is known to be good

    settings = target.build()
    path = checkpoint if checkpoint is not None else saved.build().directory
    export_checkpoint(path, settings, allow_targets=allow_target, say=click.echo)
