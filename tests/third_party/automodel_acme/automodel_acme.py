"""A plugin for AutoModel: a data set of sums, an optimizer that decays matrices only, and a command."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from automodel import InputError, Provider, hookimpl
from automodel.interfaces import Run, Sample

if TYPE_CHECKING:
    import torch

AUTOMODEL_HOOKS = 1


@hookimpl
def dataset_providers() -> tuple[Provider, ...]:
    return (Provider("acme-sums", "automodel_acme:sums", summary="sums of two numbers, with loss on the result"),)


@hookimpl
def optimizer_providers() -> tuple[Provider, ...]:
    return (Provider("acme-adamw", "automodel_acme:adamw", summary="AdamW with weight decay on matrices only"),)


@hookimpl
def cli_commands() -> tuple[Provider, ...]:
    return (Provider("acme-sums", "automodel_acme:show", summary="Show some rows of the data set acme-sums."),)


@hookimpl
def fit_end(run: Run) -> None:
    click.echo(f"acme: {run.step} steps, loss {run.summary.get('loss', float('nan')):.4f}")


def sums(processor: Any, num_rows: int = 1000, largest: int = 99, seed: int = 0) -> list[Sample]:
    """Sums of two random numbers.

    Args:
        processor: the tokenizer.
        num_rows: how many.
        largest: no summand is above it.
        seed: of the random numbers.
    """
    if largest < 1:
        raise InputError(f"largest must be at least 1, not {largest}")
    rows = []
    for question, answer in _rows(num_rows, largest, seed):
        prompt = processor(question)["input_ids"]
        reply = [*processor(answer)["input_ids"], processor.eos_token_id]
        rows.append({"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply})
    return rows


def adamw(params: Iterable[torch.nn.Parameter], lr: float = 5e-5, weight_decay: float = 0.1) -> torch.optim.AdamW:
    """AdamW that leaves norms and biases undecayed.

    Args:
        params: the trainable parameters.
        lr: peak learning rate.
        weight_decay: of parameters with two dimensions or more.
    """
    import torch  # this module is imported at discovery: what is heavy is imported when it is used

    parameters = list(params)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)


@click.command()
@click.option("--rows", default=3, show_default=True, help="How many.")
def show(rows: int) -> None:
    """Show some rows of the data set acme-sums."""
    for question, answer in _rows(rows, largest=99, seed=0):
        click.echo(question + answer)


def _rows(num_rows: int, largest: int, seed: int) -> list[tuple[str, str]]:
    numbers = random.Random(seed)
    pairs = [(numbers.randint(0, largest), numbers.randint(0, largest)) for _ in range(num_rows)]
    return [(f"{a} + {b} =", f" {a + b}") for a, b in pairs]
