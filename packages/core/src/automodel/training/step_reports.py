"""What is told of each step: on an accelerator one step late, so that it never waits for its numbers to be read."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from automodel.errors import RunError
from automodel.training.metrics import step_metrics
from automodel.training.parts import Parts
from automodel.training.step import StepResult


class Moment:
    """A point in the work of a device: on a CPU now, on an accelerator when it comes there."""

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event = None if device.type == "cpu" else torch.Event(device, enable_timing=True)
        if self._event is not None:  # by itself it is of the current device, whichever that is
            self._event.record(torch.accelerator.current_stream(device))

    def has_come(self) -> bool:
        """Whether the device has come there."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Return when the device has come there."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: Moment) -> float:
        """Seconds of the device between two moments that it has come to."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return earlier._event.elapsed_time(self._event) / 1e3


class NotFiniteError(RunError):
    """The loss or the gradient was not finite, which ends the run. All processes meet it together."""


@dataclass(frozen=True)
class _Step:
    """One that was begun: its number, what the loop knows of it, and the loss and norm on their way to the host."""

    number: int
    epoch: int
    lr: float
    started: Moment
    had_data: Moment
    result: StepResult
    numbers: Tensor
    ended: Moment


class StepReports:
    """Counts each step as done or skipped, and tells the hooks, when its numbers are there.

    Args:
        parts: of the run.
        ahead: let one step be begun before the one before it is told of.
    """

    def __init__(self, parts: Parts, *, ahead: bool) -> None:
        self._parts, self._num_untold = parts, int(ahead)
        self._steps: deque[_Step] = deque()
        self._consecutive_skipped = 0

    def add(self, result: StepResult, lr: float, started: Moment, had_data: Moment) -> None:
        """Take the step that was just begun, and tell of the one before it.

        Args:
            result: of the step.
            lr: that it used.
            started: when the one before was done.
            had_data: when its micro-batches were there.

        Raises:
            NotFiniteError: as `tell`.
        """
        progress = self._parts.progress
        numbers = torch.stack([result.loss, result.grad_norm]).to("cpu", non_blocking=True)
        ended = Moment(self._parts.device)
        self._steps.append(_Step(progress.step, progress.epoch, lr, started, had_data, result, numbers, ended))
        self.tell(self._num_untold)

    def tell(self, but: int = 0) -> None:
        """Wait for all steps that were begun but the last few, and tell of them.

        Raises:
            NotFiniteError: the recipe has no more patience with steps of this kind.
        """
        while len(self._steps) > but:
            self._tell(self._steps.popleft())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Tell of what an error has left untold."""
        if kind is not None:
            # the first error is the one to tell; and a device whose peers are gone may never end what it is at
            with suppress(Exception):
                while self._steps and (not dist.is_initialized() or self._steps[0].ended.has_come()):
                    self._tell(self._steps.popleft())

    def _tell(self, step: _Step) -> None:
        parts, options, run = self._parts, self._parts.options, self._parts.run
        step.ended.wait()
        loss, norm = step.numbers.tolist()
        updated = math.isfinite(loss) and math.isfinite(norm)
        if not updated and options.on_nonfinite == "stop":
            self._steps.clear()
            raise NotFiniteError(
                f"the loss is {loss} and the gradient norm {norm} in step {step.number}: the run stops, as "
                "training.on_nonfinite says; a lower learning rate or fp32 may help"
            )
        parts.progress.num_skipped_steps += not updated
        self._consecutive_skipped = 0 if updated else self._consecutive_skipped + 1
        if self._consecutive_skipped >= options.max_nonfinite_steps:
            self._steps.clear()
            raise NotFiniteError(
                f"the loss or gradient was not finite for {self._consecutive_skipped} steps in a row (training."
                "max_nonfinite_steps); nothing was updated in them. A lower learning rate or fp32 may help"
            )
        run.step = step.number
        metrics = step_metrics(
            parts,
            {"loss": loss, "grad_norm": norm, "lr": step.lr},
            step.result,
            step.ended.seconds_since(step.started),
            step.had_data.seconds_since(step.started),
            step.epoch,
        )
        run.summary.update(metrics)
        parts.hooks.step_end(step=step.number, metrics=metrics)
