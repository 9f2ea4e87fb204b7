"""The metrics of a step, and the file they are written to."""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from automodel.checkpoint.directory import written
from automodel.hookspecs import hookimpl
from automodel.interfaces import Run
from automodel.parallel.process_group import world_size
from automodel.training.step import StepResult

if TYPE_CHECKING:
    from automodel.training.parts import Parts

FILE = "metrics.jsonl"

# Dense bf16 FLOP/s from the vendors' data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12, "RTX 4090": 165e12}


def step_metrics(
    parts: Parts,
    numbers: Mapping[str, float],
    result: StepResult,
    step_time_s: float,
    data_wait_s: float,
    epoch: int,
) -> dict[str, float]:
    """What `step_end` hooks see: `numbers`, and more. Times in seconds, memory in MB (10^6 bytes), rates per second.

    `mfu` is there where the device's peak is known: 6 FLOP a parameter and token, 4 where the base is frozen (Kaplan
    et al. 2020, arXiv:2001.08361, without the attention's own).
    """
    metrics = {
        **numbers,
        "label_tokens": result.num_label_tokens,
        "label_tokens_per_s": result.num_label_tokens / step_time_s,
        "tokens_per_s": result.num_tokens / step_time_s,
        "step_time_s": step_time_s,
        "data_wait_s": data_wait_s,
        "peak_memory_mb": peak_memory_mb(parts.device),
        "epoch": epoch,
        "skipped_steps": parts.progress.num_skipped_steps,
    }
    if peak := peak_flops(parts.device):
        run = parts.run
        flop_per_token = 4 * run.num_parameters + 2 * run.num_trainable_parameters
        metrics["mfu"] = flop_per_token * metrics["tokens_per_s"] / (peak * world_size())
    return metrics


def peak_memory_mb(device: torch.device) -> float:
    """The most memory that was in use so far: of the accelerator, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "linux":  # whose ru_maxrss begins with that of the process that started this one
        [peak_kib] = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        return int(peak_kib) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)


class MetricsFile:
    """Writes `metrics.jsonl` into the run's directory: a line each step and each validation, each step once."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    @hookimpl
    def fit_start(self, run: Run) -> None:
        """Open the file.

        A resumed run drops what was written after its checkpoint. One that starts at step 0 leaves what another run
        has written as `metrics.<n>.jsonl`.
        """
        path = run.directory / FILE
        if run.step == 0 and path.exists() and path.stat().st_size:
            path.rename(next(old for n in count(1) if not (old := path.with_suffix(f".{n}.jsonl")).exists()))
        kept = [line for line in read_metrics(path) if line["step"] <= run.step] if run.step else []
        unfinished = path.with_suffix(".tmp")
        with written(path):
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            unfinished.replace(path)
            self._file = path.open("a", encoding="utf-8")

    @hookimpl
    def step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the step's line."""
        self._write(step, metrics)

    @hookimpl
    def validation_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the validation's line."""
        self._write(step, metrics)

    @hookimpl
    def fit_end(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been told when it was
                self._file.close()

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self._file is not None  # fit_start comes first
        with written(Path(self._file.name)):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, as far as they are whole (a killed run may leave half a line)."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
