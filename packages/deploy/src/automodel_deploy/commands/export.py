"""`automodel export`: a trained model becomes files for serving."""

from __future__ import annotations

import click
from automodel.cli.options import RecipeCommand, recipe_options
from automodel.recipe import load_recipe

from automodel_deploy.commands.options import checkpoint_option
from automodel_deploy.served import EXPORT, checkpoint_at


@click.command(cls=RecipeCommand)
@recipe_options
@checkpoint_option
def export(
    config: tuple[str, ...], allow_target: tuple[str, ...], overrides: tuple[str, ...], checkpoint: str | None
) -> None:
    """Write a trained model as files for serving, and verify that they say what it says.

    The recipe's section checkpoint_management.export_config names formats and optimisation level.
    """
    recipe = load_recipe(config, overrides, allow_targets=allow_target)
    target = recipe.target(EXPORT)
    assert target is not None  # the kind has a default
    from automodel_deploy.export import export_checkpoint  # imports torch, after the recipe is known to be good

    settings = target.build()
    found = checkpoint_at(recipe, checkpoint)
    export_checkpoint(found, settings, allow_targets=allow_target, say=click.echo)
