"""`automodel train` and its other spellings `automodel finetune llm` and `vlm`."""

from __future__ import annotations

import click

from automodel.cli.options import WORDS, RecipeCommand, recipe_options
from automodel.garbage import collector_paused
from automodel.launch.agent import launch_options, launched
from automodel.notices import strictness
from automodel.recipe import load_recipe

NEEDED = ("model", "dataset")


@click.command(cls=RecipeCommand)
@recipe_options
@click.option(
    "--resume",
    metavar="auto|PATH|never",
    default="auto",
    show_default=True,
    help="Go on from the newest whole checkpoint of the run's directory, from PATH, or start anew.",
)
@click.option(
    "--dry-run", is_flag=True, help="Build everything and show a batch with what carries loss; train nothing."
)
@click.option(
    "--profile",
    is_flag=True,
    help="Print where a few steps spend their time, and write it and a trace to the run's directory.",
)
@launch_options
@click.option("--strict", is_flag=True, help="Fallbacks, such as another attention than the recipe's, are errors.")
def train(
    config: tuple[str, ...],
    allow_target: tuple[str, ...],
    overrides: tuple[str, ...],
    resume: str,
    dry_run: bool,
    profile: bool,
    strict: bool,
    **processes: str | None,
) -> None:
    """Fine-tune a model as a recipe says.

    The same command again goes on where the last one stopped.
    """
    if profile and dry_run:
        raise click.UsageError("--profile looks at steps of training, and --dry-run trains none: leave one of them out")
    recipe = load_recipe(config, overrides, allow_targets=allow_target, needs=NEEDED)
    if launched(click.get_current_context().meta[WORDS], processes):
        return
    with strictness(strict):
        if dry_run:
            # these import torch, after the recipe is known to be good
            from automodel.parallel.process_group import is_first
            from automodel.training.dry_run import dry_run as show

            text = show(recipe, resume)
            if is_first():
                click.echo(text)
        else:
            with collector_paused(all_stays=True):
                from automodel.training.train import run_recipe  # likewise

            run_recipe(recipe, resume, profile=profile)


@click.group()
def finetune() -> None:
    """The same as train: `automodel finetune llm -c recipe.yaml`, and `vlm` for vision-language models."""


finetune.add_command(train, "llm")
finetune.add_command(train, "vlm")
