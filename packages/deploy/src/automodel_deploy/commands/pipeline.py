"""`automodel pipeline`: one command from data to an answering endpoint."""

from __future__ import annotations

import os

import click
from automodel import InputError
from automodel.cli.options import WORDS, RecipeCommand, recipe_options
from automodel.launch.agent import launch_options
from automodel.recipe import load_recipe

CHECK = "--check"


@click.command(cls=RecipeCommand)
@recipe_options
@launch_options
@click.option(CHECK, is_flag=True, help="Stop the server after its first answer.")
def pipeline(
    config: tuple[str, ...],
    allow_target: tuple[str, ...],
    overrides: tuple[str, ...],
    check: bool,
    **processes: str | None,
) -> None:
    """Train, validate, export, register and deploy, as far as the recipe has sections for it.

    Each stage is done once: the same command again goes on where it was interrupted, and leaves out what is made from
    the same recipe and files. Options for processes (--nproc-per-node) are for training and validation.
    """
    if "RANK" in os.environ:
        raise InputError("a pipeline is started once, not by torchrun or srun: --nproc-per-node is for its training")
    recipe = load_recipe(config, overrides, allow_targets=allow_target, needs=("model", "dataset"))
    from automodel_deploy.pipeline import run_pipeline  # imports torch, after the recipe is known to be good

    words = [word for word in click.get_current_context().meta[WORDS][1:] if word != CHECK]
    run_pipeline(recipe, words, stop_after_answer=check)
