"""How fast a device multiplies matrices, by trying."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from automodel.training.linear import product

_LARGEST = 8192
_SECONDS_EACH = 0.1
_SECONDS_TOGETHER = 0.4


@dataclass(frozen=True)
class MatmulPeak:
    """FLOP/s of the fastest product of two square matrices, and what was measured."""

    flops: float
    size: int
    dtype: torch.dtype
    device: torch.device
    num_threads: int

    def __str__(self) -> str:
        where = (
            f"on {self.device}"
            if self.device.type != "cpu"
            else f"on {self.num_threads} CPU thread" + "s" * (self.num_threads > 1)
        )
        return f"products of {self.size} x {self.size} {str(self.dtype).removeprefix('torch.')} matrices {where}"


def measure_matmul_peak(device: torch.device, dtype: torch.dtype) -> MatmulPeak:
    """Multiply matrices, larger and larger, for about half a second, with the threads and settings of this process.

    The random state of the run is left alone.
    """
    size = 256
    seconds, operands = _first_product(device, dtype, size)
    while size < _LARGEST and 8 * seconds < _SECONDS_EACH:
        try:
            seconds, operands = _first_product(device, dtype, 2 * size)
        except torch.OutOfMemoryError:  # the model fills the device: the size before has to do
            break
        size *= 2
    until = time.perf_counter() + _SECONDS_TOGETHER
    while time.perf_counter() < until:
        seconds = min(seconds, _timed_product(*operands))
    return MatmulPeak(2 * size**3 / seconds, size, dtype, device, torch.get_num_threads())


def _first_product(device: torch.device, dtype: torch.dtype, size: int) -> tuple[float, tuple[Tensor, Tensor]]:
    """Seconds of a product that is not the first of its size, and its operands."""
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    _timed_product(left, right)
    return _timed_product(left, right), (left, right)


def _timed_product(left: Tensor, right: Tensor) -> float:
    _wait_for(left.device)
    started = time.perf_counter()
    product(left, right)
    _wait_for(left.device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
