"""`automodel merge`: a trained adapter and its base model become one ordinary model."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--checkpoint",
    metavar="DIR",
    required=True,
    help="A run's directory (its newest whole checkpoint is taken), one checkpoint step_<n>, or a PEFT adapter.",
)
@click.option(
    "--output",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path),
    help="Where the model is written; must not exist or be empty.",
)
@click.option(
    "--base",
    metavar="LOCATION",
    help="The base model, where it no longer lies where the recipe or the adapter says; for an adapter on a quantised "
    "base, the base before quantisation.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Data type of the merged model; the base's own if not given.",
)
@click.option(
    "--allow-target",
    metavar="PACKAGE",
    multiple=True,
    help="Let the checkpoint's recipe name functions of this package by dotted path.",
)
def merge(checkpoint: str, output: Path, base: str | None, dtype: str | None, allow_target: tuple[str, ...]) -> None:
    """Merge a trained adapter into its base model.

    The result is an ordinary Hugging Face directory with weights, configuration and tokenizer, which needs neither
    peft nor the base model.
    """
    from automodel_peft_lora.merging import merge_checkpoint  # imports torch, after the options are known to be good

    merged = merge_checkpoint(checkpoint, output, base=base, dtype=dtype, allow_targets=allow_target)
    click.echo(f"merged {merged.adapter} into {merged.base}: {output} ({merged.dtype})")
