"""`automodel validate`: check a recipe without importing or starting anything that it names."""

from __future__ import annotations

import click

from automodel.cli.options import RecipeCommand, recipe_options
from automodel.recipe import Recipe, load_recipe

NEEDED = ("model", "dataset")


@click.command(cls=RecipeCommand)
@recipe_options
def validate(config: tuple[str, ...], allow_target: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check a recipe without running it.

    Prints what fills each section. Exit code 2, and every mistake with its position, if the recipe is wrong.
    """
    recipe = load_recipe(config, overrides, allow_targets=allow_target, needs=NEEDED)
    click.echo(f"{' + '.join(config)}: valid")
    rows = summary(recipe)
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for section, name, origin in rows:
        click.echo(f"  {section:<{widths[0]}}  {name:<{widths[1]}}  {origin}")


def summary(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Section, provider, and the plugin that brings it, for every section of the recipe and every default."""
    registry = recipe.resolver.registry
    rows = []
    for section in registry.section_kinds():
        target = recipe.target(section)
        if target is None or (not recipe.has(section) and section.startswith("validation_")):
            continue
        entry = registry.find(target.kind, target.name) if target.kind and target.plugin else None
        name = entry.provider.name if entry else target.name
        origin = target.plugin or target.location.partition(":")[0]
        rows.append((section, name, origin if recipe.has(section) else f"{origin} (default)"))
    return rows
