"""A run that is killed at any moment goes on, by the same command, as if nothing had happened."""

import random
import resource
import time

import pytest
from automodel.checkpoint import directory, manifest
from automodel.training.metrics import read_metrics
from support import metrics

STEPS = ("step_scheduler.max_steps=120", "step_scheduler.ckpt_every_steps=3", "checkpoint.keep_last_n_checkpoints=2")
NUM_KILLS = 10


def last_step(run):
    lines = read_metrics(run / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def kill_while_training(process, run, moments):
    """Kill after a few more steps: in one of them, between two, or in the middle of a save."""
    begin = newest_checkpoint(run)
    until = begin + moments.randint(4, 11)
    while last_step(run) < until:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.1))
    assert process.poll() is None, "the run ended before it was killed: give it more steps"
    process.kill()
    process.wait()


def newest_checkpoint(run):
    return max((step for step, _ in directory.checkpoints(run)), default=0)


@pytest.mark.slow  # tests/faults kills runs too
def test_losses_after_kill_9_at_ten_random_moments_are_bit_identical(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe, *STEPS, "checkpoint.checkpoint_dir=whole")
    moments = random.Random(0)
    run = tmp_path / "killed"
    command = ("train", "-c", recipe, *STEPS, "checkpoint.checkpoint_dir=killed")
    for _ in range(NUM_KILLS):
        kill_while_training(automodel.start(*command), run, moments)
        assert directory.checkpoints(run), "nothing was saved, so nothing was resumed"
        for _, checkpoint in directory.checkpoints(run):
            assert manifest.problems(checkpoint) == []
    automodel(*command)
    assert len(metrics(run)) == 120
    assert metrics(run) == metrics(tmp_path / "whole")
    assert metrics(run, "grad_norm") == metrics(tmp_path / "whole", "grad_norm")


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_the_same(automodel, recipe, tmp_path):
    steps = ("step_scheduler.max_steps=6", "step_scheduler.ckpt_every_steps=2")
    automodel("train", "-c", recipe, *steps, "checkpoint.checkpoint_dir=whole")
    automodel("train", "-c", recipe, *steps, "step_scheduler.max_steps=4", "checkpoint.checkpoint_dir=damaged")
    state = next((tmp_path / "damaged" / "step_4" / "state").glob("*.safetensors"))
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    done = automodel("train", "-c", recipe, *steps, "checkpoint.checkpoint_dir=damaged")
    assert "step_4 is damaged and passed over" in done.stderr
    assert "resuming from damaged/step_2" in done.stdout
    assert metrics(tmp_path / "damaged") == metrics(tmp_path / "whole")


def test_a_full_disk_ends_the_run_with_a_message_and_leaves_the_last_checkpoint_whole(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe, "step_scheduler.max_steps=2")
    largest = 8_000_000  # bytes a file may have: less than the optimizer's state
    process = automodel.start(
        *("train", "-c", recipe), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    )
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert "could not save the checkpoint of step 6" in stderr
    assert "Traceback" not in stderr
    assert [step for step, _ in directory.checkpoints(tmp_path / "run")] == [2]
    assert directory.latest_verified(tmp_path / "run") == tmp_path / "run" / "step_2"
    assert not list((tmp_path / "run").glob("*incomplete*"))
