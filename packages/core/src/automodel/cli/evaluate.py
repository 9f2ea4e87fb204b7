"""`automodel evaluate`: measure a model on a recipe's validation data."""

from __future__ import annotations

import json

import click

from automodel.cli.options import WORDS, RecipeCommand, recipe_options
from automodel.launch.agent import launch_options, launched
from automodel.recipe import load_recipe

NEEDED = ("model", "dataset", "validation_dataset")


@click.command(cls=RecipeCommand)
@recipe_options
@launch_options
@click.option(
    "--checkpoint", metavar="PATH", help="A checkpoint, or the directory of a run. The recipe's model without."
)
def evaluate(
    config: tuple[str, ...],
    allow_target: tuple[str, ...],
    overrides: tuple[str, ...],
    checkpoint: str | None,
    **processes: str | None,
) -> None:
    """Measure a model on a recipe's validation data, and print the metrics as JSON."""
    recipe = load_recipe(config, overrides, allow_targets=allow_target, needs=NEEDED)
    if launched(click.get_current_context().meta[WORDS], processes):
        return
    from automodel.training.evaluate import evaluate as measure  # imports torch, after the recipe is known to be good

    metrics = measure(recipe, checkpoint)
    from automodel.parallel.process_group import is_first

    if is_first():
        click.echo(json.dumps(metrics, indent=1))
