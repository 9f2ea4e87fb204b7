"""What a snapshot copies so that training may go on while it is written."""

import pytest
import torch
import torch.distributed as dist
from automodel.checkpoint.snapshot import take
from tiny_run import parts
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate


@pytest.fixture
def group_of_one(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_copies_of_the_model_are_whole_tensors_also_of_replicated_parameters(tmp_path):
    run = parts(tmp_path)
    weight = run.module.head.weight.detach().clone()
    replicated = DTensor.from_local(weight.clone(), init_device_mesh("cpu", (1,)), [Replicate()])
    run.module.head.weight = nn.Parameter(replicated)  # as tensor parallelism leaves norms
    run.optimizer = torch.optim.SGD(run.module.parameters(), lr=0.1)
    snapshot = take(run, {}, with_model=True, copied=True)
    with torch.no_grad():
        run.module.head.weight.mul_(2)  # the run goes on
    assert isinstance(snapshot.tensors["model.head.weight"], DTensor)
    assert torch.equal(snapshot.tensors["model.head.weight"].to_local(), weight)
    assert not any(isinstance(value, DTensor) for value in snapshot.model.values())
    assert torch.equal(snapshot.model["head.weight"], weight)
