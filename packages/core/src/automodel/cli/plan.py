"""`automodel plan`: what a recipe needs on so many devices, without any of them."""

from __future__ import annotations

import dataclasses
import json

import click

from automodel.cli.options import RecipeCommand, recipe_options
from automodel.errors import InputError
from automodel.plan.devices import DEVICES
from automodel.recipe import Recipe, load_recipe

NEEDED = ("model",)


@click.command(cls=RecipeCommand)
@recipe_options
@click.option("--world-size", type=click.IntRange(1), default=1, show_default=True, help="Processes of the run.")
@click.option("--device", type=click.Choice(sorted(DEVICES)), default="h100", show_default=True)
@click.option("--seq-length", type=click.IntRange(1), help="Tokens of a sample; dataset.max_length if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the bytes as JSON.")
def plan(
    config: tuple[str, ...],
    allow_target: tuple[str, ...],
    overrides: tuple[str, ...],
    world_size: int,
    device: str,
    seq_length: int | None,
    as_json: bool,
) -> None:
    """Say what memory a recipe needs in each process and what it sends, and whether it fits."""
    recipe = load_recipe(config, overrides, allow_targets=allow_target, needs=NEEDED)
    dataset = recipe.target("dataset")
    length = seq_length or (dataset.kwargs.get("max_length") if dataset is not None else None)
    if not isinstance(length, int):
        raise InputError("how long are the samples? give --seq-length, or dataset.max_length in the recipe")
    from automodel.plan.estimate import estimate  # imports torch, after the recipe is known to be good
    from automodel.plan.report import fits, remedies, report

    found = estimate(recipe, world_size, length)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(found), "total": found.total}, indent=1))
        return
    click.echo(report(found, world_size, device, DEVICES[device]))
    if not fits(found, DEVICES[device]):

        def reload(changes: dict[str, object]) -> Recipe:
            words = [
                f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in changes.items()
            ]
            return load_recipe(config, (*overrides, *words), allow_targets=allow_target, needs=NEEDED)

        click.echo(remedies(recipe, reload, world_size, length, DEVICES[device]))
