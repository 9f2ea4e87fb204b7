import json
import random

import numpy as np
import pytest
import torch
from automodel import InputError, RunError
from automodel.checkpoint.checkpointer import Checkpointer
from automodel.checkpoint.state import load_state, state_of, write_state
from automodel.training.loop import fit, save
from automodel.training.lr_schedules import cosine
from tiny_run import OPTIMIZERS, parts


def save_state(directory, run):
    write_state(directory, *state_of(run))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("saved_at", [1, 4, 7])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, optimizer, frozen, saved_at, ahead):
    whole = parts(tmp_path, optimizer, frozen=frozen)
    fit(whole, ahead=False)

    first = parts(tmp_path, optimizer, frozen=frozen, max_steps=saved_at)
    fit(first, ahead=ahead)
    (tmp_path / "state").mkdir()
    save_state(tmp_path / "state", first)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())

    second = parts(tmp_path, optimizer, frozen=frozen)
    torch.manual_seed(99)
    load_state(tmp_path / "state", second)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
    load_state(tmp_path / "state", second)
    fit(second, ahead=ahead)
    assert first.hooks.losses + second.hooks.losses == whole.hooks.losses
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


def test_the_state_is_safetensors_and_json_only(tmp_path):
    run = parts(tmp_path)
    (tmp_path / "state").mkdir()
    save_state(tmp_path / "state", run)
    assert {path.suffix for path in (tmp_path / "state").iterdir()} == {".safetensors", ".json"}
    json.loads((tmp_path / "state" / "trainer.json").read_text())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    (tmp_path / "state").mkdir()
    save_state(tmp_path / "state", parts(tmp_path))
    with pytest.raises(InputError, match="another model"):
        load_state(tmp_path / "state", parts(tmp_path, seed=1))
    with pytest.raises(InputError, match="another model"):
        load_state(tmp_path / "state", parts(tmp_path, width=16))


def test_a_checkpoint_of_another_set_of_trained_parameters_is_refused(tmp_path):
    (tmp_path / "state").mkdir()
    save_state(tmp_path / "state", parts(tmp_path, frozen=True))
    before = parts(tmp_path)
    with pytest.raises(InputError, match=r"does not fit this recipe.*model\.embed\.weight is not in it"):
        load_state(tmp_path / "state", before)
    with pytest.raises(InputError, match="does not fit this recipe"):
        load_state(tmp_path / "state", parts(tmp_path, "adafactor", frozen=True))


def resumed(tmp_path, change):
    """A run saved after step 4 and loaded into parts that `change` has changed."""
    first = parts(tmp_path, max_steps=4)
    fit(first, ahead=False)
    (tmp_path / "state").mkdir(exist_ok=True)
    save_state(tmp_path / "state", first)
    second = parts(tmp_path)
    change(second)
    load_state(tmp_path / "state", second)
    return second


def test_settings_changed_in_the_recipe_count_from_the_first_resumed_step(tmp_path):
    def change(second):
        second.optimizer = torch.optim.AdamW(second.module.parameters(), lr=1e-3, weight_decay=0.5, fused=True)
        second.lr_scheduler = cosine(second.optimizer, num_steps=9, warmup_steps=2)

    plain, changed = resumed(tmp_path, lambda second: None), resumed(tmp_path, change)
    (group,) = changed.optimizer.param_groups
    assert group["lr"] == pytest.approx(plain.optimizer.param_groups[0]["lr"] / 10)
    assert group["weight_decay"] == 0.5
    fit(plain, ahead=False)
    fit(changed, ahead=False)
    rates = [[lr for *_, lr in run.hooks.losses] for run in (plain, changed)]
    assert rates[1] == pytest.approx([rate / 10 for rate in rates[0]])


def test_a_longer_schedule_counts_from_the_first_resumed_step(tmp_path):
    def longer(second):
        second.lr_scheduler = cosine(second.optimizer, num_steps=90, warmup_steps=2)

    short, long = resumed(tmp_path, lambda second: None), resumed(tmp_path, longer)
    assert long.optimizer.param_groups[0]["lr"] > short.optimizer.param_groups[0]["lr"]


def test_a_parameter_that_never_had_a_gradient_does_not_keep_a_run_from_resuming(tmp_path):
    def run(max_steps):
        built = parts(tmp_path, max_steps=max_steps)
        built.module.unused = torch.nn.Linear(2, 2)
        built.optimizer = torch.optim.AdamW(built.module.parameters(), lr=1e-2, fused=True)
        built.lr_scheduler = cosine(built.optimizer, num_steps=9, warmup_steps=2)
        return built

    whole = run(9)
    fit(whole, ahead=False)
    first = run(4)
    fit(first, ahead=False)
    (tmp_path / "state").mkdir()
    save_state(tmp_path / "state", first)
    second = run(9)
    load_state(tmp_path / "state", second)
    fit(second, ahead=False)
    assert first.hooks.losses + second.hooks.losses == whole.hooks.losses
    assert second.module.unused.weight not in second.optimizer.state


def test_a_model_that_is_not_finite_is_not_saved(tmp_path):
    built = parts(tmp_path)
    built.checkpointer = Checkpointer(checkpoint_dir=str(tmp_path / "run"))
    with torch.no_grad():
        built.module.head.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        save(built, {}, validated=False, wait=True)
    assert not (tmp_path / "run").exists()
