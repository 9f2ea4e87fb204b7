"""`automodel register`: a trained model becomes a version in the model registry."""

from __future__ import annotations

import click
from automodel.cli.options import RecipeCommand, recipe_options
from automodel.recipe import load_recipe

from automodel_deploy.commands.options import checkpoint_option
from automodel_deploy.interfaces import Version


@click.command(cls=RecipeCommand)
@recipe_options
@checkpoint_option
def register(
    config: tuple[str, ...], allow_target: tuple[str, ...], overrides: tuple[str, ...], checkpoint: str | None
) -> None:
    """Register a trained model in the registry of the recipe's section `model_registry`.

    The version gets the checkpoint's recipe, its metrics, where it comes from, and the files that were exported, or
    the checkpoint's own model where none were. The same files are registered once.
    """
    recipe = load_recipe(config, overrides, allow_targets=allow_target, needs=("model_registry",))
    from automodel_deploy.registration import register_checkpoint  # these import torch, after the recipe is checked
    from automodel_deploy.served import checkpoint_at, exports_of

    found = checkpoint_at(recipe, checkpoint)
    click.echo(sentence(register_checkpoint(recipe, found, exports_of(recipe, found))))


def sentence(version: Version) -> str:
    """What happened, for a person."""
    how = "registered as" if version.is_new else "already registered as"
    return f"{how} version {version.version} of {version.name}: {version.uri} at {version.registry}"
