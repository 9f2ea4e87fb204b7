import signal
import subprocess
import sys
import time

import pytest
from automodel import InputError, RunError
from automodel.checkpoint import directory, manifest
from automodel.checkpoint.checkpointer import Checkpointer, best_checkpoint, chosen_checkpoint, find_checkpoint


def write(run_directory, step, text="weights", **about):
    with directory.saving(run_directory, step):
        target = directory.begin(run_directory, step)
        (target / "model").mkdir()
        (target / "model" / "model.safetensors").write_text(text * 100)
        manifest.write_manifest(target, {"step": step, **about})
        directory.flush(target)
        return directory.publish(target)


def names(run_directory):
    return sorted(path.name for path in run_directory.iterdir())


def test_checkpoints_are_found_by_looking_in_the_order_of_their_steps(tmp_path):
    for step in (2, 10, 9):
        write(tmp_path, step)
    (tmp_path / "step_x").mkdir()
    assert [step for step, _ in directory.checkpoints(tmp_path)] == [2, 9, 10]
    assert directory.latest_verified(tmp_path) == tmp_path / "step_10"
    assert directory.checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "model" / "model.safetensors").write_text("Weights" + "weights" * 99),
        lambda path: (path / "model" / "model.safetensors").write_text("weights"),
        lambda path: (path / "model" / "model.safetensors").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text('{"format": 1, "files"'),
        lambda path: (path / "manifest.json").write_text("[]"),
        lambda path: (path / "manifest.json").write_text('{"format": 1, "files": {"model/model.safetensors": {}}}'),
    ],
    ids=["changed", "truncated", "missing", "no manifest", "half a manifest", "no manifest of ours", "another shape"],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_notice(tmp_path, capsys, damage):
    good = write(tmp_path, 1)
    damage(write(tmp_path, 2))
    assert directory.latest_verified(tmp_path) == good
    assert "step_2 is damaged and passed over" in capsys.readouterr().err


def test_an_interrupted_save_leaves_no_checkpoint_and_the_others_as_they_were(tmp_path):
    good = write(tmp_path, 1)
    with pytest.raises(ZeroDivisionError), directory.saving(tmp_path, 2):
        (directory.begin(tmp_path, 2) / "half").write_text("x")
        raise ZeroDivisionError
    assert directory.latest_verified(tmp_path) == good
    with pytest.raises(RunError, match=r"step 3.*intact"), directory.saving(tmp_path, 3):
        (directory.begin(tmp_path, 3) / "half").write_text("x")
        raise OSError("No space left on device")
    assert [step for step, _ in directory.checkpoints(tmp_path)] == [1]
    with directory.exclusive(tmp_path):
        assert [name for name in names(tmp_path) if name != ".lock"] == ["step_1"]


def test_a_full_disk_is_told_as_tokenizers_tells_it_too(tmp_path):
    with pytest.raises(RunError, match=r"step 1: No space left.*intact"), directory.saving(tmp_path, 1):
        raise Exception("No space left on device (os error 28)")
    with pytest.raises(Exception, match="another"), directory.saving(tmp_path, 1):
        raise Exception("another")


def test_a_disk_that_is_full_from_the_start_is_an_error_that_names_the_directory(tmp_path):
    (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"cannot write to .* \(No space left"), directory.exclusive(tmp_path):
        pass


def test_pruning_keeps_the_newest_verified_ones_and_never_counts_a_damaged_one(tmp_path):
    paths = [write(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[2] / "model" / "model.safetensors").write_text("torn")
    directory.prune(tmp_path, keep_last_n=2, just_saved=paths[3])
    assert names(tmp_path) == ["step_2", "step_3", "step_4"]
    directory.prune(tmp_path, keep_last_n=1, just_saved=paths[3])
    assert names(tmp_path) == ["step_3", "step_4"]


def test_a_damaged_checkpoint_counts_when_it_has_been_saved_again(tmp_path):
    damaged = write(tmp_path, 2)
    (damaged / "manifest.json").unlink()
    directory.prune(tmp_path, keep_last_n=1, just_saved=write(tmp_path, 1))
    write(tmp_path, 2)
    directory.prune(tmp_path, keep_last_n=1, just_saved=write(tmp_path, 3))
    assert names(tmp_path) == ["step_3"]


def tracked(loss, name="val_loss", greater_is_better=False, validated=True):
    metric = {"name": name, "greater_is_better": greater_is_better}
    return {"metrics": {name: loss}, "validated": validated, "metric_for_best_model": metric}


def test_the_best_checkpoint_stays_and_is_the_one_to_use(tmp_path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 1.0)):
        write(tmp_path, step, **tracked(loss))
    write(tmp_path, 5, **tracked(0.5, validated=False))  # the loss of an earlier step
    best = best_checkpoint(tmp_path)
    assert best == chosen_checkpoint(tmp_path) == tmp_path / "step_2"
    directory.prune(tmp_path, keep_last_n=2, just_saved=tmp_path / "step_5", best=best)
    assert names(tmp_path) == ["step_2", "step_4", "step_5"]
    assert find_checkpoint(tmp_path) == tmp_path / "step_5"


def test_a_metric_may_be_better_when_it_is_greater_and_a_damaged_best_one_is_not_used(tmp_path):
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        write(tmp_path, step, **tracked(accuracy, "val_exact_match", greater_is_better=True))
    assert chosen_checkpoint(tmp_path) == tmp_path / "step_2"
    (tmp_path / "step_2" / "model" / "model.safetensors").write_text("torn")
    assert chosen_checkpoint(tmp_path) == tmp_path / "step_3"


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path):
    for step, loss in ((1, float("nan")), (2, 2.0), (3, 3.0)):
        write(tmp_path, step, **tracked(loss))
    assert best_checkpoint(tmp_path) == tmp_path / "step_2"


def test_a_run_that_tracks_no_metric_has_no_best_checkpoint(tmp_path):
    write(tmp_path, 1, metrics={"val_loss": 1.0}, validated=True, metric_for_best_model=None)
    assert best_checkpoint(tmp_path) is None
    assert chosen_checkpoint(tmp_path) == tmp_path / "step_1"


def test_settings_that_contradict_each_other_are_told():
    with pytest.raises(InputError, match="greater_is_better says nothing"):
        Checkpointer(greater_is_better=True)
    with pytest.raises(InputError, match="local_dir is for a checkpoint_dir in an object store"):
        Checkpointer(local_dir="here")
    with pytest.raises(InputError, match="save_interval_steps must be at least 1"):
        Checkpointer(save_interval_steps=0)
    assert Checkpointer(metric_for_best_model="val_exact_match").more_is_better
    assert not Checkpointer(metric_for_best_model="val_loss").more_is_better


def test_two_runs_cannot_write_to_one_directory(tmp_path):
    script = f"""
import time
from pathlib import Path
from automodel.checkpoint.directory import exclusive
with exclusive(Path({str(tmp_path / "run")!r})):
    print("locked", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=str(other.pid)), directory.exclusive(tmp_path / "run"):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with directory.exclusive(tmp_path / "run"):  # a killed run leaves no lock behind
        pass


def test_a_run_that_never_wrote_leaves_no_directory(tmp_path):
    with pytest.raises(InputError), directory.exclusive(tmp_path / "a" / "run"):
        raise InputError("a bad model, found after the directory was taken")
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"), directory.exclusive(tmp_path / "file" / "run"):
        pass


def test_find_says_what_is_wrong_with_the_path(tmp_path):
    with pytest.raises(InputError, match="is no directory"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        find_checkpoint(tmp_path)
    path = write(tmp_path, 1)
    assert find_checkpoint(path) == find_checkpoint(tmp_path) == path
    (path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"damaged: model/model.safetensors is missing"):
        find_checkpoint(path)


def test_which_checkpoint_a_run_starts_from(tmp_path):
    other = write(tmp_path / "other", 5)
    checkpointer = Checkpointer(checkpoint_dir=str(tmp_path / "run"), restore_from=str(tmp_path / "other"))
    assert checkpointer.find("never") is None
    assert checkpointer.find("auto") == other
    own = write(tmp_path / "run", 1)
    assert checkpointer.find("auto") == own
    assert checkpointer.find(str(other)) == other
    with pytest.raises(InputError, match="already holds step_1"):
        checkpointer.find("never")


@pytest.mark.parametrize("moment", range(3))
def test_a_kill_during_the_save_leaves_the_last_checkpoint_whole(tmp_path, moment):
    write(tmp_path, 1)
    script = f"""
import os, itertools
from pathlib import Path
from automodel.checkpoint import directory, manifest
for step in itertools.count(2):
    target = directory.begin(Path({str(tmp_path)!r}), step)
    for name in range(20):
        (target / f"{{name}}.bin").write_bytes(os.urandom(100_000))
    manifest.write_manifest(target, {{"step": step}})
    directory.flush(target)
    directory.publish(target)
    directory.prune(Path({str(tmp_path)!r}), 2, Path({str(tmp_path)!r}) / f"step_{{step}}")
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "step_3").exists():
        time.sleep(0.01)
    time.sleep(0.037 * moment)
    process.kill()
    process.wait()
    latest = directory.latest_verified(tmp_path)
    assert latest == directory.checkpoints(tmp_path)[-1][1], "the newest directory must be whole"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path):
    (write(tmp_path, 3) / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"every checkpoint .* is damaged"):
        Checkpointer(checkpoint_dir=str(tmp_path)).find("auto")


def test_a_run_does_not_go_back_within_its_own_directory(tmp_path):
    early, late = write(tmp_path, 1), write(tmp_path, 2)
    checkpointer = Checkpointer(checkpoint_dir=str(tmp_path))
    assert checkpointer.find(str(late)) == late
    with pytest.raises(InputError, match="also holds step_2"):
        checkpointer.find(str(early))


def test_pruning_never_takes_what_was_just_saved(tmp_path):
    paths = {step: write(tmp_path, step) for step in (20, 30, 15)}
    directory.prune(tmp_path, keep_last_n=2, just_saved=paths[15])
    assert names(tmp_path) == ["step_15", "step_30"]


def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_the_new_one_stays(tmp_path):
    paths = [write(tmp_path, step) for step in (1, 2)]
    (tmp_path / "step_1.incomplete" / "in the way").mkdir(parents=True)
    with pytest.raises(RunError, match="could not delete the old checkpoint"):
        directory.prune(tmp_path, keep_last_n=1, just_saved=paths[1])
    assert manifest.problems(paths[1]) == []


def test_saving_a_step_again_replaces_the_damaged_one(tmp_path):
    (write(tmp_path, 1) / "manifest.json").unlink()
    path = write(tmp_path, 1, "other")
    assert manifest.problems(path) == []
    assert names(tmp_path) == ["step_1"]


def test_files_of_a_checkpoint_are_as_readable_as_its_directory(tmp_path):
    tmp_path.chmod(0o755)
    target = directory.begin(tmp_path, 1)
    (target / "private").write_text("x")
    (target / "private").chmod(0o600)
    directory.flush(target)
    directory.publish(target)
    assert (tmp_path / "step_1" / "private").stat().st_mode & 0o777 == 0o644
