"""On CUDA devices: the numbers of the CPU, in every layout that the machine has devices for."""

import pytest
import torch
from support import metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
FSDP2 = "distributed._target_=fsdp2"
TENSOR = (FSDP2, "distributed.tp_size=2", "distributed.sequence_parallel=true")
CONTEXT = (FSDP2, "distributed.cp_size=2")
OFFLOAD = (FSDP2, "distributed.cpu_offload=true", "distributed.forward_prefetch=true")


@pytest.mark.parametrize(
    ("num_devices", "layout"),
    [(1, ()), (2, ()), (2, (FSDP2,)), (2, TENSOR), (2, CONTEXT), (2, OFFLOAD)],
    ids=["alone", "ddp", "fsdp2", "sequence", "context", "offload"],
)
def test_losses_are_those_of_the_cpu(automodel, recipe, tmp_path, num_devices, layout):
    if torch.cuda.device_count() < num_devices:
        pytest.skip(f"needs {num_devices} CUDA devices")
    words = ("-c", recipe, "step_scheduler.grad_acc_steps=null", "step_scheduler.global_batch_size=8")
    words = (*words, "dataloader.batch_size=2")
    automodel("train", *words, "training.device=cpu", "checkpoint.checkpoint_dir=cpu")
    launch = ("--nproc-per-node", num_devices) if num_devices > 1 else ()
    process = automodel.start("train", *words, *layout, *launch)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert metrics(tmp_path / "run") == pytest.approx(metrics(tmp_path / "cpu"), rel=1e-4)


def test_bfloat16_learns_and_tells_its_peak_of_memory(automodel, recipe, tmp_path):
    words = ("-c", recipe, "model.torch_dtype=bfloat16", "training.device=cuda", "step_scheduler.max_steps=20")
    automodel("train", *words)
    losses = metrics(tmp_path / "run")
    assert losses[20] < losses[1] - 0.5
    assert metrics(tmp_path / "run", "peak_memory_mb")[20] > 0
