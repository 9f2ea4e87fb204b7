"""`python -m automodel`: the command, as torchrun starts it."""

from automodel.cli.main import run

run()
