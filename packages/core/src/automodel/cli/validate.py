"""`automodel validate`: check a recipe without importing or starting anything that it names."""

from __future__ import annotations

import click

from automodel.cli.options import RecipeCommand, recipe_options
from automodel.recipe import Recipe, load_recipe

NEEDED = ("model", "dataset")
"""Without these a recipe is right as far as it goes: it may be completed by a second file or by overrides."""


@click.command(cls=RecipeCommand)
@recipe_options
def validate(config: tuple[str, ...], allow_target: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check a recipe without running it.

    Prints what fills each section, and which ones training needs besides. Exit code 2, and every mistake with its
    position, if the recipe is wrong.
    """
    recipe = load_recipe(config, overrides, allow_targets=allow_target)
    missing = [section for section in NEEDED if not recipe.has(section)]
    more = f"; to train it needs {' and '.join(f'`{section}`' for section in missing)} as well" if missing else ""
    click.echo(f"{' + '.join(config)}: valid{more}")
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
        if target is None or (not recipe.has(section) and (section.startswith("validation_") or "." in section)):
            continue
        entry = registry.find(target.kind, target.name) if target.kind and target.plugin else None
        name = entry.provider.name if entry else target.name
        origin = target.plugin or target.location.partition(":")[0]
        rows.append((section, name, origin if recipe.has(section) else f"{origin} (default)"))
    return rows
