"""DTensors whose parts are not those that torch would make: whole again, saved, and counted in the gradient's norm."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from automodel.checkpoint.state import whole
from automodel.parallel.gradients import divide_gradients, grad_norm
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing import start_processes

WHOLE = torch.arange(12.0).reshape(4, 3) - 5.5
ROWS = {"all on one": ((0, 4), (4, 4)), "one and three": ((0, 1), (1, 4))}


def part(rows):
    first, last = rows
    local = WHOLE[first:last].clone()
    uneven = DTensor.from_local(
        local, init_device_mesh("cpu", (2,)), [Shard(0)], run_check=False, shape=WHOLE.shape, stride=WHOLE.stride()
    )
    chunk = SimpleNamespace(offsets=(first, 0), sizes=tuple(local.shape))
    uneven._local_tensor.__create_chunk_list__ = lambda: [chunk]
    return uneven


def worker(rank, store):
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for rows in ROWS.values():
        uneven = part(rows[rank])
        assert torch.equal(whole(uneven), WHOLE)
        parameter = nn.Parameter(uneven)
        if uneven.to_local().numel():
            parameter.grad = uneven.detach()
        norm = float(grad_norm([parameter]))
        divide_gradients([parameter], norm)
        assert norm == pytest.approx(math.sqrt(float(WHOLE.square().sum())))
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad.to_local(), part(rows[rank]).to_local() / norm)
    dist.destroy_process_group()


def test_uneven_parts_are_one_tensor_even_where_a_process_has_none(tmp_path):
    start_processes(worker, (str(tmp_path / "store"),), nprocs=2, start_method="fork")
