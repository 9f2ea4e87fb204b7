"""What a person sees while a model trains: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from automodel.hookspecs import hookimpl
from automodel.interfaces import Run

SECONDS_BETWEEN_LINES = 2.0


class ConsoleProgress:
    """Prints how the run goes. Lines off a terminal come at most every two seconds, the first and last step always."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = float("-inf")

    @hookimpl
    def fit_start(self, run: Run) -> None:
        """Say what will be trained."""
        self._run = run
        share = run.num_trainable_parameters / max(run.num_parameters, 1)
        steps = f"{run.max_steps} steps" if run.max_steps else "all data once"
        self._print(
            f"training {run.name}: {run.num_trainable_parameters:,} of {run.num_parameters:,} parameters "
            f"({share:.2%}), {steps}{f', from step {run.step}' if run.step else ''}; run directory {run.directory}"
        )
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=run.max_steps, completed=run.step)
            self._bar.start()

    @hookimpl
    def step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the step."""
        text = (
            f"loss {metrics['loss']:.4f}  grad {metrics['grad_norm']:.3f}  lr {metrics['lr']:.2e}  "
            f"{metrics['label_tokens_per_s']:.0f} label tok/s  {metrics['step_time_s']:.2f} s"
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif step in (1, self._run.max_steps) or time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print(f"step {step}{f'/{self._run.max_steps}' if self._run.max_steps else ''}  {text}")

    @hookimpl
    def validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the validation."""
        self._print(f"step {step}  {describe_validation(metrics)}")

    @hookimpl
    def checkpoint_saved(self, step: int, path: Path) -> None:
        """Say where the checkpoint is."""
        self._print(f"step {step}  saved {path}")

    @hookimpl
    def fit_end(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, text: str) -> None:
        (self._bar.console if self._bar is not None else self._console).print(text, markup=False)


def describe_validation(metrics: Mapping[str, float]) -> str:
    """One line of a validation's metrics."""
    rows = int(metrics["val_rows"])
    return (
        f"validation: loss {metrics['val_loss']:.4f}  token accuracy {metrics['val_token_accuracy']:.1%}  "
        f"exact match {metrics['val_exact_match']:.1%} ({round(metrics['val_exact_match'] * rows)} of {rows} rows)"
    )
