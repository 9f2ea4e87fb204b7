"""Megatron-FSDP on real CUDA devices: the numbers of the same training without it."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from automodel_distributed_nvfsdp.nvfsdp import NVFSDPManager
from runs import Runs
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture
def group_of_one(tmp_path):
    torch.cuda.set_device(0)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def losses(forward, optimizer, micro_batch, num_steps=4):
    ids_BL = torch.arange(4 * 16, device="cuda").reshape(4, 16) % CONFIG.vocab_size
    found = []
    for _ in range(num_steps):
        for number, part_BL in enumerate(ids_BL.chunk(2), start=1):
            with micro_batch(forward, is_last=number == 2):
                loss = forward(input_ids=part_BL, labels=part_BL).loss / 2
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("strategy", ["no_shard", "optim", "optim_grads", "optim_grads_params"])
@pytest.mark.parametrize("options", [{}, {"average_in_collective": True}, {"fsdp_double_buffer": True}], ids=str)
def test_it_trains_as_without_it(strategy, options):
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    plain = LlamaForCausalLM(CONFIG).to(device)
    model = copy.deepcopy(plain)
    manager = NVFSDPManager(device, data_parallel_sharding_strategy=strategy, **options)
    forward = manager.parallelize(model)
    optimizer = manager.shard_optimizer(torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True))
    plain_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, fused=True)
    expected = losses(plain, plain_optimizer, lambda module, is_last: torch.enable_grad())
    assert expected[-1] < expected[0]
    assert losses(forward, optimizer, manager.micro_batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("strategy", ["optim", "optim_grads_params"])
def test_losses_of_two_devices_are_those_of_the_cpu(tmp_path, strategy):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 CUDA devices")
    runs = Runs(tmp_path)
    runs.add("cpu", "training.device=cpu")
    runs.finish(1)
    words = ["-c", tmp_path / "llama.yaml", f"checkpoint.checkpoint_dir={tmp_path / 'cuda'}", "--nproc-per-node", "2"]
    layout = ["distributed._target_=nvfsdp", f"distributed.data_parallel_sharding_strategy={strategy}"]
    subprocess.run([sys.executable, "-m", "automodel", "train", *words, *layout], check=True)
    for name in ("loss", "val_loss"):
        assert runs.metrics("cuda", name) == pytest.approx(runs.metrics("cpu", name), rel=1e-4)
