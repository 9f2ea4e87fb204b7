"""`automodel train --profile`: what a few steps of a run spend their time on."""

from __future__ import annotations

import gc
import gzip
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from automodel.checkpoint.directory import written
from automodel.hookspecs import hookimpl
from automodel.training.matmul_peak import measure_matmul_peak
from automodel.training.parts import Parts
from automodel.training.profile_events import OUTPUT_LAYER_RANGE, read_events, work_of_steps
from automodel.training.profile_table import Measured, summary

NUM_STEPS = 5
NUM_WARM_UP = 2
MOST_MICRO_BATCHES = 40
"""Of all profiled steps together: reading what a large model does in more takes minutes and gigabytes."""


class StepProfiler:
    """Profiles a few steps after the first ones, writes a trace and a table, prints it, and leaves the run alone."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started_at = parts.progress.step
        save_every = parts.checkpointer.save_interval_steps or parts.scheduler.ckpt_every_steps
        self._first, self._last = profiled_steps(
            self._started_at,
            parts.num_steps,
            parts.micro_batches_per_step,
            (parts.scheduler.val_every_steps, save_every if parts.checkpointer.enabled else None),
        )
        self._profiler: profile | None = None
        self._profiled: list[Mapping[str, float]] = []
        self._before: Mapping[str, float] | None = None
        self._failed = False

    @hookimpl
    def fit_start(self) -> None:
        """Make the profiler, which begins to record when its steps come."""
        self._output_layer = _OutputLayer(self._parts.module)
        activities = [ProfilerActivity.CPU]
        if self._parts.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        else:  # kineto tells on stderr that there is no GPU, and when it starts and stops
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        waits = self._first - self._started_at - 2  # one more step is the profiler's own warm-up
        steps = self._last - self._first + 1
        when = schedule(wait=waits, warmup=1, active=steps, repeat=1) if waits >= 0 else None
        self._profiler = profile(activities=activities, schedule=when, profile_memory=True)
        self._profiler.start()

    @hookimpl
    def step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Begin or go on, and tell what was found after the last step of interest."""
        if self._profiler is None:
            return
        if step >= self._first:
            self._profiled.append(metrics)
        elif step > self._started_at + 1:
            self._before = metrics
        if step == self._last:
            self._finish()
        else:
            self._profiler.step()

    @hookimpl
    def exception(self) -> None:
        """Steps that failed are no measure of the others."""
        self._failed = True

    @hookimpl
    def fit_end(self) -> None:
        """Tell of a run that ended before all the steps of interest came."""
        if self._profiler is None:
            return
        if self._profiled and not self._failed:
            self._finish()
            return
        self._stop()
        if not self._failed:
            done = self._parts.progress.step - self._started_at
            ended = f"the run ended before step {self._first}" if done else "no step was left to train"
            print(f"nothing was profiled: {ended}", flush=True)

    def _stop(self) -> profile:
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._output_layer.unmark()
        return profiler

    def _finish(self) -> None:
        """Write the trace and the table, and print that."""
        profiler = self._stop()
        last = self._first + len(self._profiled) - 1
        directory = self._parts.run.directory / "profile"
        trace, table = directory / f"trace_step_{self._first}_{last}.json.gz", directory / "summary.txt"
        with _no_garbage_collection():
            work = work_of_steps(read_events(profiler.events() or [], self._parts.device.type == "cuda"))
        text = summary(work, self._measured(last))
        with written(table):
            directory.mkdir(exist_ok=True)
            table.write_text(text, encoding="utf-8")
        with written(trace):
            _write_trace(profiler, trace)
        print(f"\n{text}trace, for https://ui.perfetto.dev or chrome://tracing: {trace}\n", flush=True)

    def _measured(self, last: int) -> Measured:
        run, device, steps = self._parts.run, self._parts.device, self._profiled
        which = f"steps {self._first} to {last}" if last > self._first else f"step {last}"
        num_processes = dist.get_world_size() if dist.is_initialized() else 1
        first_of = f", in the first of {num_processes} processes" if num_processes > 1 else ""
        before = self._before
        return Measured(
            title=f"profile of {which} of {run.name} on {device}{first_of}",
            num_steps=len(steps),
            step_s=sum(step["step_time_s"] for step in steps),
            data_s=sum(step["data_wait_s"] for step in steps),
            num_tokens=sum(_num_tokens(step) for step in steps),
            flop_per_token=4 * run.num_parameters + 2 * run.num_trainable_parameters,
            num_processes=num_processes,
            peak_memory_mb=steps[-1]["peak_memory_mb"],
            peak_of="this process" if device.type == "cpu" else str(device),
            peak=measure_matmul_peak(device, self._compute_dtype()),
            before=None if before is None else (before["step_time_s"], _num_tokens(before)),
        )

    def _compute_dtype(self) -> torch.dtype:
        """What the output layer gives: autocast's, FSDP's or the parameters' own."""
        if self._output_layer.dtype is not None:
            return self._output_layer.dtype
        if self._parts.options.mixed_precision == "bf16":
            return torch.bfloat16
        numbers: dict[torch.dtype, int] = {}
        for parameter in self._parts.module.parameters():
            numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
        return max(numbers, key=lambda dtype: numbers[dtype])


def profiled_steps(
    done: int, num_steps: int | None, micro_batches_per_step: int, interruptions: Iterable[int | None]
) -> tuple[int, int]:
    """The first and last step to profile of a run that stands after step `done`.

    Args:
        done: steps done before.
        num_steps: of the whole run, None if unknown.
        micro_batches_per_step: of each process.
        interruptions: validation or a checkpoint follows every so many steps; None never. The first ends the profile.
    """
    left = NUM_WARM_UP + 1 if num_steps is None else max(num_steps - done, 1)
    first = done + min(NUM_WARM_UP + 1, left)
    steps = max(1, min(NUM_STEPS, MOST_MICRO_BATCHES // micro_batches_per_step))
    last = first + steps - 1 if num_steps is None else min(first + steps - 1, max(num_steps, first))
    return first, min([last, *(-(-first // every) * every for every in interruptions if every)])


class _OutputLayer:
    """Marks the model's output layer in the trace, and sees its data type."""

    def __init__(self, module: nn.Module) -> None:
        model: Any = module
        layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self.dtype: torch.dtype | None = None
        self._ranges: list[record_function] = []
        self._hooks = (
            []
            if layer is None
            else [
                layer.register_forward_pre_hook(self._enter),
                layer.register_forward_hook(self._exit, always_call=True),
            ]
        )

    def _enter(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        kind = inputs[0].device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs[0].dtype
        self._ranges.append(record_function(OUTPUT_LAYER_RANGE))
        self._ranges[-1].__enter__()

    def _exit(self, *_: Any) -> None:
        self._ranges.pop().__exit__(None, None, None)

    def unmark(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()


def _write_trace(profiler: profile, path: Path) -> None:
    """Write a Chrome trace to a path that ends in `.json.gz`: torch's own compressing takes 50 times as long."""
    plain = path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    with plain.open("rb") as trace, gzip.open(path, "wb", compresslevel=3) as compressed:
        shutil.copyfileobj(trace, compressed, 1 << 20)
    plain.unlink()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For hundreds of thousands of events that all stay, it takes longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _num_tokens(metrics: Mapping[str, float]) -> float:
    """Of a step, of all processes."""
    return metrics["tokens_per_s"] * metrics["step_time_s"]
