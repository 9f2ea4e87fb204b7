"""The options of docs/training.md that save time and memory, from the recipe."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from automodel.training import build
from support import metrics

BFLOAT16 = ("model.torch_dtype=bfloat16", "optimizer.lr=1e-4")


def test_rows_with_and_without_their_padding_give_the_same_losses(automodel, recipe, tmp_path, monkeypatch):
    shapes = []
    own = torch.nn.Embedding.forward

    def noting(module, ids):
        shapes.append(ids.shape)
        return own(module, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", noting)
    automodel("train", "-c", recipe)
    del shapes[:2]  # of what is tried out before the first step
    assert {shape[0] for shape in shapes} == {1}
    positions = sum(shape.numel() for shape in shapes)
    shapes.clear()
    automodel("train", "-c", recipe, "training.padding_free=false", "checkpoint.checkpoint_dir=padded")
    assert {shape[0] for shape in shapes} == {4}
    # all begin with the same system prompt, which is half of their tokens
    assert positions < 0.7 * sum(shape.numel() for shape in shapes)
    assert metrics(tmp_path / "padded") == pytest.approx(metrics(tmp_path / "run"), rel=1e-5)


def test_a_model_that_needs_padding_says_so(automodel, recipe):
    eager = ("train", "-c", recipe, "--dry-run", "model.attn_implementation=eager")
    assert "padding" not in automodel(*eager).stderr
    assert "padding is computed with" in automodel(*eager, "training.padding_free=true").stderr
    automodel(*eager, "training.padding_free=true", "--strict", expect=2)


def test_packed_sequences_hold_all_samples_and_resume(automodel, recipe, tmp_path):
    packed = ("train", "-c", recipe, "packed_sequence.packed_sequence_size=256", "dataloader.batch_size=1")
    one_epoch = ("step_scheduler.max_steps=null", "step_scheduler.num_epochs=1", "step_scheduler.ckpt_every_steps=2")
    automodel(*packed, *one_epoch)
    automodel("train", "-c", recipe, *one_epoch, "checkpoint.checkpoint_dir=rows")
    assert sum(metrics(tmp_path / "run", "label_tokens").values()) == sum(
        metrics(tmp_path / "rows", "label_tokens").values()
    )
    assert len(metrics(tmp_path / "run")) < 40 / 2
    losses = metrics(tmp_path / "run")
    again = (*packed, *one_epoch, "checkpoint.checkpoint_dir=again")
    automodel(*again, "step_scheduler.num_epochs=null", "step_scheduler.max_steps=2")
    automodel(*again)
    assert metrics(tmp_path / "again") == losses


def test_a_sample_that_fits_no_sequence_is_an_error(automodel, recipe):
    done = automodel("train", "-c", recipe, "packed_sequence.packed_sequence_size=16", expect=2)
    assert "longer than packed_sequence_size: 16" in done.stderr
    assert "split_across_pack: true" in done.stderr


def test_rows_of_similar_length_follow_each_other(automodel, recipe, tmp_path):
    one_epoch = ("step_scheduler.max_steps=null", "dataloader.group_by_length=true", "step_scheduler.grad_acc_steps=1")
    automodel("train", "-c", recipe, *one_epoch)
    tokens = metrics(tmp_path / "run", "tokens_per_s")
    times = metrics(tmp_path / "run", "step_time_s")
    lengths = [round(tokens[step] * times[step]) for step in tokens]
    assert lengths == sorted(lengths, reverse=True)


def test_training_in_bfloat16_resumes_exactly(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe, *BFLOAT16)
    torch_own = ("optimizer.stochastic_rounding=false", "checkpoint.checkpoint_dir=rounded")
    automodel("train", "-c", recipe, *BFLOAT16, *torch_own)
    resumed = (*("train", "-c", recipe), *BFLOAT16, "checkpoint.checkpoint_dir=again")
    automodel(*resumed, "step_scheduler.max_steps=3")
    automodel(*resumed)
    losses = metrics(tmp_path / "run")
    assert metrics(tmp_path / "again") == losses
    assert losses[6] < losses[1]
    assert metrics(tmp_path / "rounded") != losses


def test_mixed_precision_stays_near_float32(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe)
    automodel("train", "-c", recipe, "training.mixed_precision=bf16", "checkpoint.checkpoint_dir=mixed")
    exact, mixed = metrics(tmp_path / "run"), metrics(tmp_path / "mixed")
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("option", ["model.torch_dtype=bfloat16", "training.mixed_precision=bf16"])
@pytest.mark.parametrize("has", [True, False])
def test_a_processor_without_bfloat16_is_told(automodel, recipe, monkeypatch, option, has):
    monkeypatch.setattr(build, "_processor_has_bfloat16", lambda: has)
    done = automodel("train", "-c", recipe, option, "--dry-run")
    assert ("no instructions for bfloat16" in done.stderr) != has


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe)
    automodel("train", "-c", recipe, "training.compile=true", "checkpoint.checkpoint_dir=compiled")
    assert metrics(tmp_path / "compiled") == pytest.approx(metrics(tmp_path / "run"), rel=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is mapped")
def test_trained_weights_are_not_written_to_the_pages_of_a_mapped_file(automodel, recipe, monkeypatch):
    automodel("train", "-c", recipe, "step_scheduler.max_steps=1")
    saved = "model={_target_: causal-lm, pretrained_model_name_or_path: run/step_1/model}"
    again = ("train", "-c", recipe, saved, "step_scheduler.max_steps=1", "checkpoint.checkpoint_dir=again")
    mapped = []
    step = torch.optim.AdamW.step

    def watched(self, *arguments, **options):
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "safetensors" in line]
        files = [[int(address, 16) for address in line[0].split("-")] for line in lines]
        for parameter in self.param_groups[0]["params"]:
            mapped.append(any(start <= parameter.data_ptr() < end for start, end in files))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    automodel(*again)
    assert mapped
    assert not any(mapped)


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
def test_tensors_on_the_cpu_lie_on_whole_pages():
    """So does PyTorch's allocator where it asks for huge pages; otherwise a header comes first."""
    code = "import automodel.training, torch; print(torch.empty(3_000_000).data_ptr() % 4096)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"
