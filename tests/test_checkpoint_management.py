"""The section checkpoint_management: validated, asynchronous and best checkpoints, in runs of the real command."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from automodel.checkpoint import directory, manifest
from automodel.checkpoint.checkpointer import best_checkpoint
from automodel.training.train import load_recipe_data
from safetensors.torch import load_file, save_file
from support import metrics

EVERY_2 = ("step_scheduler.max_steps=6", "checkpoint_management.checkpoint_config.save_interval_steps=2")
VALIDATED = "checkpoint_management.checkpoint_config.validate_on_save=true"
ASYNC = "checkpoint_management.checkpoint_config.async=true"


def steps(run):
    return [step for step, _ in directory.checkpoints(run)]


def tensors(run):
    """All tensors of all checkpoints, by file and name. (The order within a file's header is drawn by safetensors.)"""
    files = sorted(run.rglob("*.safetensors"))
    return {(str(f.relative_to(run)), name): value for f in files for name, value in load_file(f).items()}


def same_tensors(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype, key
        assert torch.equal(value.reshape(-1).view(torch.uint8), other[key].reshape(-1).view(torch.uint8)), key


def the_file(target, part):
    return next((target / part).glob("*.safetensors"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def cast(path):
    """Write the tensors again as another data type, as a writer with a bug would."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    save_file({name: value.to(torch.float16) for name, value in load_file(path).items()}, path, about)


def forget_a_setting(path):
    config = json.loads(path.read_text())
    config["rms_norm_eps"] = 0.5
    path.write_text(json.dumps(config))


DAMAGE = {
    "a flipped byte of the state": ("after", lambda t: flip(the_file(t, "state")), "has another checksum"),
    "a flipped byte of the model": ("after", lambda t: flip(the_file(t, "model")), "has another checksum"),
    "a truncated file": ("after", lambda t: truncate(the_file(t, "model")), "bytes, not"),
    "a missing shard": ("after", lambda t: the_file(t, "state").unlink(), "is missing"),
    "a flipped byte before the checksum": ("before", lambda t: flip(the_file(t, "state")), "has other values"),
    "a flipped byte of the model before the checksum": (
        *("before", lambda t: flip(the_file(t, "model"))),
        "has other values",
    ),
    "a wrong dtype of the state": ("before", lambda t: cast(the_file(t, "state")), "float16"),
    "a wrong dtype of the model": ("before", lambda t: cast(the_file(t, "model")), "model/: model.embed_tokens.weight"),
    "a wrong setting of the model": (
        *("before", lambda t: forget_a_setting(t / "model" / "config.json")),
        "model/ gives other logits",
    ),
}


def damage(monkeypatch, name, step):
    """Damage the checkpoint of a step after it has been written: before or after its checksums are taken."""
    moment, action, said = DAMAGE[name]
    function = {"before": (manifest, "write_manifest"), "after": (directory, "flush")}[moment]
    real = getattr(*function)

    def damaging(target, *arguments):
        if moment == "after":
            real(target, *arguments)
        if target.name == f"step_{step}.incomplete":
            action(target)
        if moment == "before":
            real(target, *arguments)

    monkeypatch.setattr(*function, damaging)
    return said


SLOW = {"a flipped byte of the model", "a flipped byte before the checksum", "a wrong dtype of the model"}
"""What others among them are like."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in DAMAGE])
def test_a_checkpoint_that_is_not_as_it_should_be_is_told_and_the_run_goes_on(automodel, recipe, monkeypatch, name):
    said = damage(monkeypatch, name, step=4)
    done = automodel("train", "-c", recipe, *EVERY_2, VALIDATED)
    assert "the checkpoint of step 4 was not written as it should be" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert steps(Path("run")) == [2, 6]
    assert "saved run/step_4" not in done.stdout


def test_without_validation_the_same_damage_goes_unseen_until_a_run_resumes(automodel, recipe, monkeypatch):
    damage(monkeypatch, "a flipped byte of the model", step=4)
    automodel("train", "-c", recipe, *EVERY_2)
    assert steps(Path("run")) == [2, 4, 6]


def test_where_the_last_checkpoint_is_damaged_the_same_command_goes_on_from_the_one_before(
    automodel, recipe, monkeypatch, tmp_path
):
    automodel("train", "-c", recipe, *EVERY_2, "checkpoint.checkpoint_dir=whole")
    with monkeypatch.context() as patched:
        damage(patched, "a flipped byte of the state", step=6)
        failed = automodel("train", "-c", recipe, *EVERY_2, VALIDATED, expect=1)
    assert "the checkpoint of step 6, with which the run ends, was not written as it should be" in failed.stderr
    assert steps(Path("run")) == [2, 4]
    done = automodel("train", "-c", recipe, *EVERY_2, VALIDATED)
    assert "resuming from run/step_4" in done.stdout
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    same_tensors(tensors(tmp_path / "run" / "step_6"), tensors(tmp_path / "whole" / "step_6"))


@pytest.mark.parametrize("adapter", [(), ("peft._target_=lora",)], ids=["full", "lora"])
def test_validated_and_asynchronous_saves_write_the_same_and_change_nothing_in_the_run(
    automodel, recipe, tmp_path, adapter
):
    automodel("train", "-c", recipe, *EVERY_2, *adapter, "checkpoint.checkpoint_dir=plain")
    done = automodel("train", "-c", recipe, *EVERY_2, *adapter, VALIDATED, ASYNC)
    assert [line for line in done.stdout.splitlines() if "saved" in line][-1].endswith("saved run/step_6")
    assert "warning" not in done.stderr
    assert steps(tmp_path / "run") == steps(tmp_path / "plain") == [2, 4, 6]
    same_tensors(tensors(tmp_path / "run"), tensors(tmp_path / "plain"))
    for step in (2, 4, 6):
        states = [tmp_path / run / f"step_{step}" / "state" / "trainer.json" for run in ("run", "plain")]
        assert states[0].read_text() == states[1].read_text()
    for of in ("loss", "grad_norm"):
        assert metrics(tmp_path / "run", of) == metrics(tmp_path / "plain", of)


@pytest.mark.parametrize(
    "layout",
    [
        ("distributed._target_=fsdp2",),
        pytest.param(("distributed._target_=fsdp2", "peft._target_=lora"), marks=pytest.mark.slow),
        pytest.param(("distributed._target_=fsdp2", "distributed.tp_size=2"), marks=pytest.mark.slow),
        pytest.param((), marks=pytest.mark.slow),
    ],
    ids=["fsdp2", "fsdp2 and lora", "fsdp2 and tp", "ddp"],
)
def test_two_processes_save_validated_and_asynchronously_what_they_save_otherwise(automodel, recipe, tmp_path, layout):
    two = ("--nproc-per-node", 2, *layout, "step_scheduler.max_steps=4", EVERY_2[1])
    for directory_of_run, extra in (("plain", ()), ("validated", (VALIDATED,)), ("both", (VALIDATED, ASYNC))):
        words = (*two, *extra, f"checkpoint.checkpoint_dir={directory_of_run}")
        _, stderr = (process := automodel.start("train", "-c", recipe, *words)).communicate(timeout=300)
        assert process.returncode == 0, stderr
        assert "warning: the checkpoint" not in stderr
        assert steps(tmp_path / directory_of_run) == [2, 4]
        # also of step 4: after step 2 another model was laid out, and gradients are still averaged once a step
        same_tensors(tensors(tmp_path / directory_of_run), tensors(tmp_path / "plain"))


def test_a_kill_while_files_are_written_beside_the_run_leaves_the_checkpoint_before(automodel, recipe, tmp_path):
    many = ("step_scheduler.max_steps=60", EVERY_2[1], ASYNC)
    automodel("train", "-c", recipe, *many, "checkpoint.checkpoint_dir=whole")
    run = tmp_path / "run"
    process = automodel.start("train", "-c", recipe, *many)
    while len(steps(run)) < 3 or not (writing := list(run.glob("step_*.incomplete"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert writing
    before = steps(run)
    for _, path in directory.checkpoints(run):
        assert manifest.problems(path) == []
    done = automodel("train", "-c", recipe, *many)
    assert f"resuming from run/step_{before[-1]}" in done.stdout
    assert metrics(run) == metrics(tmp_path / "whole")


def test_a_signal_waits_for_the_checkpoint_that_is_being_written(automodel, recipe, tmp_path):
    process = automodel.start("train", "-c", recipe, "step_scheduler.max_steps=500", EVERY_2[1], ASYNC)
    while len(steps(tmp_path / "run")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert f"saved {'run'}/step_{steps(tmp_path / 'run')[-1]}" in stdout
    assert not list((tmp_path / "run").glob("*.incomplete"))
    assert len(metrics(tmp_path / "run")) == steps(tmp_path / "run")[-1]


def test_what_hinders_a_save_beside_the_run_ends_it_with_one_message(automodel, recipe, monkeypatch, tmp_path):
    def full(target):
        if "step_4" in target.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "flush", full)
    failed = automodel("train", "-c", recipe, *EVERY_2, ASYNC, expect=1)
    assert "could not save the checkpoint of step 4: [Errno 28] No space left on device; earlier" in failed.stderr
    assert steps(tmp_path / "run") == [2]
    assert not list((tmp_path / "run").glob("*.incomplete"))


def test_the_best_checkpoint_by_a_metric_of_validation_stays(automodel, recipe, data, tmp_path):
    words = (
        *(f"validation_dataset={{_target_: text-instruction, data_path: {data}/validation.jsonl}}",),
        *("step_scheduler.max_steps=8", "optimizer.lr=0.3", EVERY_2[1]),
        *("checkpoint.keep_last_n_checkpoints=1", "checkpoint.metric_for_best_model=val_loss"),
    )
    automodel("train", "-c", recipe, *words)
    losses = metrics(tmp_path / "run", "val_loss")
    assert list(losses) == [2, 4, 6, 8]  # validated before each save, although only the last is asked for
    best = min(losses, key=losses.get)
    assert best != 8, "choose another learning rate: the last checkpoint stays anyhow"
    assert steps(tmp_path / "run") == [best, 8]
    assert best_checkpoint(tmp_path / "run") == tmp_path / "run" / f"step_{best}"
    listed = automodel("checkpoints", "list", "run").stdout.splitlines()
    assert [line.endswith("(best)") for line in listed] == [True, False]


def test_a_metric_that_nothing_measures_is_told_before_training(automodel, recipe, data):
    validation = f"validation_dataset={{_target_: text-instruction, data_path: {data}/validation.jsonl}}"
    told = automodel("train", "-c", recipe, validation, "checkpoint.metric_for_best_model=val_los", expect=2).stderr
    assert "`val_los` is no metric of validation; did you mean `val_loss`?" in told
    told = automodel("train", "-c", recipe, "checkpoint.metric_for_best_model=val_loss", expect=2).stderr
    assert "metric_for_best_model: val_loss needs a section validation_dataset" in told


def test_the_section_goes_over_checkpoint_and_is_free_to_change(automodel, recipe, tmp_path):
    (tmp_path / "management.yaml").write_text(
        "checkpoint_management:\n  checkpoint_config:\n    enabled: true\n    save_interval_steps: 3\n"
        "    keep_last_n_checkpoints: 1\n    validate_on_save: true\n"
    )
    both = ("train", "-c", recipe, "-c", "management.yaml", "step_scheduler.ckpt_every_steps=1")
    automodel(*both, "checkpoint.keep_last_n_checkpoints=5")
    assert steps(tmp_path / "run") == [6]
    assert load_recipe_data(tmp_path / "run" / "recipe.yaml")["checkpoint_management"]
    done = automodel("train", "-c", recipe, "step_scheduler.max_steps=8")
    assert "the recipe has changed" not in done.stderr
    assert steps(tmp_path / "run") == [6, 8]


def test_the_command_lists_shows_verifies_compares_and_prunes(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe, *EVERY_2)
    listed = automodel("checkpoints", "list", "run").stdout.splitlines()
    assert [line.split()[1] for line in listed] == ["2", "4", "6"]
    assert "loss" in listed[0] and "MB" in listed[0]
    shown = automodel("checkpoints", "show", "run").stdout
    assert "run/step_6: step 6" in shown and "model/model.safetensors" in shown and "torch" in shown
    assert automodel("checkpoints", "verify", "run").stdout.count(": whole") == 3

    compared = automodel("checkpoints", "diff", "run/step_2", "run/step_6").stdout
    before, after = (load_file(f"run/step_{step}/model/model.safetensors") for step in (2, 6))
    name = "model.norm.weight"
    change = float((after[name].double() - before[name].double()).norm() / before[name].double().norm())
    assert "recipe: the same" in compared and f"{len(before)} of {len(before)} differ" in compared
    assert f"{change:.3e}  {name}" in compared or "more that differ less" in compared
    assert "0 of " in automodel("checkpoints", "diff", "run/step_6", "run/step_6").stdout

    flip(the_file(tmp_path / "run" / "step_4", "model"))
    failed = automodel("checkpoints", "verify", "run", expect=1)
    assert "run/step_4: model/model.safetensors has another checksum" in failed.stdout
    assert "1 of the checkpoints" in failed.stderr
    assert automodel("checkpoints", "prune", "run", "--keep", 1, "--dry-run").stdout == "would delete run/step_2\n"
    assert steps(tmp_path / "run") == [2, 4, 6]
    assert automodel("checkpoints", "prune", "run", "--keep", 1).stdout == "deleted run/step_2\n"
    assert steps(tmp_path / "run") == [4, 6]  # the damaged one is left to be looked at
    assert automodel("checkpoints", "prune", "run", "--keep", 1).stdout == "nothing to delete\n"


@pytest.mark.parametrize("verb", [("list",), ("show",), ("verify",), ("prune", "--keep", "1")])
def test_a_directory_without_checkpoints_is_told(automodel, tmp_path, verb):
    (tmp_path / "empty").mkdir()
    assert "empty holds no checkpoint" in automodel("checkpoints", *verb, "empty", expect=2).stderr
    assert "nowhere is no directory" in automodel("checkpoints", *verb, "nowhere", expect=2).stderr


def test_mistakes_in_the_section_are_told_with_their_place(automodel, recipe, tmp_path):
    (tmp_path / "management.yaml").write_text(
        "checkpoint_management:\n  checkpoint_config:\n    save_intervall_steps: 3\n    async: maybe\n"
        "  export_confg:\n    formats: [safetensors]\nmodel_registry: 5\n"
    )
    told = automodel("validate", "-c", recipe, "-c", "management.yaml", expect=2).stderr
    assert "management.yaml:3:5: checkpoint_management.checkpoint_config.save_intervall_steps: " in told
    assert "did you mean `save_interval_steps`?" in told
    assert "management.yaml:4:12: checkpoint_management.checkpoint_config.async: expected true or false" in told
    assert "management.yaml:5:3: checkpoint_management.export_confg: there is no section of this name; did" in told
