"""What the commands that use a trained model have in common: `--checkpoint`."""

from __future__ import annotations

import click

checkpoint_option = click.option(
    "--checkpoint",
    metavar="PATH",
    help="One checkpoint step_<n>, or a run's directory (its best or newest whole checkpoint is taken). The recipe's "
    "own run without.",
)
