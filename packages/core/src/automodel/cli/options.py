"""What the verbs that read a recipe have in common: `-c`, `--allow-target` and overrides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from automodel.recipe.overrides import is_assignment, is_option

F = TypeVar("F", bound=Callable[..., Any])

OVERRIDES = "overrides"
WORDS = "automodel.words"
"""Where a context's `meta` has the whole command line after `automodel`."""
EPILOG = (
    "OVERRIDES are values that go over the recipe's: `--section.key value`, `--section.key=value` or "
    "`section.key=value`. They are typed as in YAML; `section=null` removes a section."
)


class RecipeCommand(click.Command):
    """A command that takes overrides anywhere between its options.

    Its callback gets them as `overrides`, the words in the order of the command line. A word with a dash and no dot
    is an option, so a typo in one is an error and no override.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("epilog", EPILOG)
        super().__init__(*args, **kwargs)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """`[OPTIONS] ... [OVERRIDES]`."""
        return [*super().collect_usage_pieces(ctx), "[OVERRIDES]..."]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the overrides out and let click parse the rest."""
        ctx.meta[WORDS] = [*ctx.command_path.split()[1:], *args]
        overrides, rest, strays = self.divide(args)
        files = [word for word in strays if word.endswith((".yaml", ".yml"))]
        try:
            result = super().parse_args(ctx, rest)
        except click.NoSuchOption:
            raise
        except click.UsageError as error:
            if not files:
                raise
            raise click.UsageError(f"a recipe is given by an option: write `-c {files[0]}`", ctx) from error
        ctx.params[OVERRIDES] = tuple(overrides)
        return result

    def divide(self, args: list[str]) -> tuple[list[str], list[str], list[str]]:
        """The words of overrides, the other words, and those of them that belong to no option."""
        with_value = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.count
            for name in parameter.opts
        }
        overrides: list[str] = []
        rest: list[str] = []
        strays: list[str] = []
        words = list(args)
        while words:
            word = words.pop(0)
            if word == "--":
                return overrides, [*rest, word, *words], strays
            if word in with_value:
                rest += [word, *words[:1]]
                words = words[1:]
            elif is_option(word):
                overrides.append(word)
                if "=" not in word and words and not words[0].startswith("--"):
                    overrides.append(words.pop(0))
            elif is_assignment(word):
                overrides.append(word)
            else:
                rest.append(word)
                strays += [] if word.startswith("-") else [word]
        return overrides, rest, strays


def recipe_options(function: F) -> F:
    """Add `-c/--config` (parameter `config`, a tuple) and `--allow-target` (parameter `allow_target`, a tuple)."""
    allow = click.option(
        "--allow-target",
        metavar="PACKAGE",
        multiple=True,
        help="Let the recipe name functions of this package by dotted path. May be given several times.",
    )
    config = click.option(
        "-c",
        "--config",
        metavar="RECIPE.yaml",
        multiple=True,
        required=True,
        help="The recipe. Given several times, later ones go over earlier ones.",
    )
    return config(allow(function))
