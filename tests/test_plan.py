"""`automodel plan` against what a run really holds."""

import json
import time

import pytest
import torch
from automodel.plan.estimate import estimate
from automodel.recipe import load_recipe
from support import ROOT

LLAMA = ROOT / "examples" / "llama3_8b_full.yaml"
WIDER = (
    *("model.config.hidden_size=256", "model.config.intermediate_size=512", "model.config.head_dim=64"),
    *("model.config.num_hidden_layers=4", "dataset.max_length=256", "dataloader.batch_size=8"),
    *("step_scheduler.grad_acc_steps=1", "step_scheduler.max_steps=1", "checkpoint.enabled=false"),
)


def planned(automodel, *words):
    return json.loads(automodel("plan", *words, "--json").stdout)


@pytest.fixture
def rows_of_one_length(data):
    row = {"instruction": "Go", "output": "one two three " * 72}
    (data / "train.jsonl").write_text((json.dumps(row) + "\n") * 16)


def test_parameters_and_optimizer_state_are_what_a_run_holds(automodel, recipe, monkeypatch):
    held = {}  # noted beside the real step, which runs
    step = torch.optim.AdamW.step

    def watched(self, *arguments, **options):
        parameters = [p for group in self.param_groups for p in group["params"]]
        held["gradients"] = sum(p.grad.nbytes for p in parameters)
        result = step(self, *arguments, **options)
        held["parameters"] = sum(p.nbytes for p in parameters)
        held["optimizer"] = sum(v.nbytes for s in self.state.values() for v in s.values() if v.dim())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    automodel("train", "-c", recipe, *WIDER)
    monkeypatch.undo()
    plan = planned(automodel, "-c", recipe, *WIDER)
    for name, value in held.items():
        assert plan[name] == pytest.approx(value, rel=0.01), name


@pytest.mark.slow
def test_activations_are_what_the_peak_of_memory_grows_by(automodel, recipe, tmp_path, rows_of_one_length):
    """Peaks of two batch sizes are compared, so that what the libraries take cancels out.

    A plan counts every position of every row. These rows begin alike, and without padding would share most of them.
    """
    peaks, plans = {}, {}
    for batch_size in (8, 16):
        words = (*WIDER, f"dataloader.batch_size={batch_size}", "optimizer._target_=sgd", "optimizer.lr=0.1")
        words += ("training.padding_free=false",)
        run = f"checkpoint.checkpoint_dir=run{batch_size}"
        process = automodel.start("train", "-c", recipe, *words, run, env={"MALLOC_MMAP_THRESHOLD_": "65536"})
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        line = json.loads((tmp_path / f"run{batch_size}" / "metrics.jsonl").read_text().splitlines()[0])
        peaks[batch_size] = line["peak_memory_mb"] * 1e6
        # the plan has a label at every position, these rows at nearly every one: as long as they have labels
        length = line["label_tokens"] // batch_size + 1
        plans[batch_size] = planned(automodel, "-c", recipe, *words, "--seq-length", length)["total"]
    assert plans[16] - plans[8] == pytest.approx(peaks[16] - peaks[8], rel=0.1)


def test_the_loss_is_that_of_an_accelerator(automodel, recipe):
    """PyTorch's, which label smoothing needs on a CPU too, keeps float32 of logits in bfloat16."""
    words = ("-c", recipe, *WIDER, "model.torch_dtype=bfloat16")
    own, torchs = planned(automodel, *words), planned(automodel, *words, "loss_fn.label_smoothing=0.1")
    assert own["activations"] == pytest.approx(torchs["activations"], rel=0.01)


def test_sharding_divides_what_it_shards(automodel, recipe):
    words = ("-c", recipe, *WIDER, "distributed._target_=fsdp2", "--world-size")
    one, four = planned(automodel, *words, 1), planned(automodel, *words, 4)
    for name in ("parameters", "gradients", "optimizer"):
        assert four[name] == pytest.approx(one[name] / 4, rel=0.02)
    assert one["gathered"] == one["sent_for_parameters"] == 0 < four["gathered"]


def test_mixed_precision_halves_what_is_gathered_and_gradients_are_averaged_in_float32(automodel, recipe):
    words = ("-c", recipe, *WIDER, "distributed._target_=fsdp2", "--world-size", 4)
    full, mixed = planned(automodel, *words), planned(automodel, *words, "distributed.mixed_precision=true")
    assert mixed["parameters"] == full["parameters"]
    assert mixed["activations"] < full["activations"]
    assert mixed["gathered"] < 0.8 * full["gathered"]
    accumulating = (*words, "step_scheduler.grad_acc_steps=4", "distributed.mixed_precision=true")
    deferred = planned(automodel, *accumulating)
    at_once = planned(automodel, *accumulating, "distributed.defer_fsdp_grad_sync=false")
    assert deferred["gradients"] == 4 * deferred["num_trainable"]
    assert at_once["gradients"] == full["gradients"]
    assert deferred["sent_for_parameters"] < at_once["sent_for_parameters"]


def test_what_does_not_fit_is_told_with_what_would(automodel):
    done = automodel("plan", "-c", LLAMA, "distributed=null", "--device", "rtx4090", "--world-size", 8)
    assert "does not fit" in done.stdout
    assert "it fits" in done.stdout.splitlines()[-1]
    assert "fsdp2" in done.stdout.splitlines()[-1]


def test_eight_billion_parameters_on_a_thousand_devices_take_seconds():
    started = time.monotonic()
    plan = estimate(load_recipe([LLAMA]), 1024, 4096)
    assert time.monotonic() - started < 30
    assert plan.num_parameters == 8_030_261_248
    assert plan.parameters == pytest.approx(2 * plan.num_parameters / 1024, rel=0.01)


def test_the_length_of_samples_must_be_known(automodel, recipe):
    assert "--seq-length" in automodel("plan", "-c", recipe, expect=2).stderr
