"""float32 matrix products of a linear layer, by PyTorch's own library and by ours: forward, and both backward.

uv run python benchmarks/float32_products.py --threads 2

GFLOP/s, medians of runs in turn; the shapes are those of SmolLM2-135M's layers for 1,000 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from automodel.training.linear import onednn_is_faster, product
from torch import Tensor

TOKENS = 1000
SHAPES = {"query, output": (576, 576), "key, value": (576, 192), "gate, up": (576, 1536), "down": (1536, 576)}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"oneDNN is taken here: {onednn_is_faster()}\n\n| product | PyTorch | ours | ratio |\n|---|---|---|---|")
    ratios = []
    for name, (wide, out) in SHAPES.items():
        x, weight, grad = torch.randn(TOKENS, wide), torch.randn(out, wide), torch.randn(TOKENS, out)
        operands = {"forward": (x, weight.T), "of the input": (grad, weight), "of the weight": (grad.T, x)}
        for direction, pair in operands.items():
            seconds = in_turn([torch.mm, product], pair, options.runs)
            theirs, ours = (2e-9 * TOKENS * wide * out / taken for taken in seconds)
            ratios.append(ours / theirs)
            print(f"| {name}, {direction} | {theirs:.0f} | {ours:.0f} | {ratios[-1]:.2f} |")
    print(f"| median | | | {statistics.median(ratios):.2f} |")


def in_turn(functions: list[Callable[..., Tensor]], operands: tuple[Tensor, Tensor], runs: int) -> list[float]:
    """The median seconds of each."""
    taken: list[list[float]] = [[] for _ in functions]
    for run in range(runs + 3):
        for function, seconds in zip(functions, taken, strict=True):
            started = time.perf_counter()
            function(*operands)
            if run >= 3:
                seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in taken]


if __name__ == "__main__":
    main()
