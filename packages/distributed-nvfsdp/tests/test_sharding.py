"""Megatron-FSDP's own code in one process, with the stand-ins for CUDA: what preparing an optimizer leaves behind."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import cuda_stand_ins, json, torch, torch.distributed as dist, sys
cuda_stand_ins.install()
from automodel_distributed_nvfsdp.nvfsdp import NVFSDPManager
from torch import nn
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)
class Layer(nn.Linear): pass
told = {}
for make in (
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), weight_decay=0.5),
):
    manager, model = NVFSDPManager(torch.device("cpu"), nvfsdp_unit_modules=["Layer"]), nn.Sequential(Layer(3, 3))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wrapped = manager.parallelize(model)
    optimizer = manager.shard_optimizer(make(model.parameters()))
    same = all(torch.equal(value.to_local(), before[name]) for name, value in model.named_parameters())
    told[type(optimizer).__name__] = [same, len(optimizer.state), float(optimizer.param_groups[0]["lr"])]
print(json.dumps(told))
"""


def test_the_step_that_prepares_an_optimizer_leaves_no_trace(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "store")], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {name: [same, states, round(lr, 6)] for name, (same, states, lr) in json.loads(done.stdout).items()} == {
        name: [True, 0, 0.1] for name in ("AdamW", "SGD", "Adam")
    }
