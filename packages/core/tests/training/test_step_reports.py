"""When steps are told of, and what ends a run whose numbers are not finite."""

import dataclasses
import signal

import pytest
from automodel.errors import RunError, StoppedError
from automodel.training.dataloader import DataLoader
from automodel.training.loop import fit
from automodel.training.step_reports import Moment
from automodel.training.step_scheduler import StepScheduler
from tiny import rows
from tiny_run import PROCESSOR, parts

VALIDATION = DataLoader(rows(3, seed=5), PROCESSOR, batch_size=3, seed=1, sampler="sequential")


class Watched:
    """A loader that notes when a step's first micro-batch is asked for, and does something before one."""

    def __init__(self, run, before=lambda step: None):
        self._loader, self._calls, self._before = run.loader, run.hooks.calls, before
        self.samples_per_turn = run.loader.samples_per_turn
        run.loader = self

    def micro_batches(self, epoch, start):
        for number, batch in enumerate(self._loader.micro_batches(epoch, start)):
            if number % 2 == 0:
                step = sum(name == "batch" for name, _ in self._calls) + 1
                self._calls.append(("batch", step))
                self._before(step)
            yield batch

    def state(self, position):
        return self._loader.state(position)


def test_a_step_is_told_of_while_the_next_one_is_at_work_but_before_what_depends_on_it(tmp_path):
    told = {}
    for ahead in (False, True):
        run = parts(tmp_path, max_steps=5)
        run.validation_loader = VALIDATION
        run.scheduler = StepScheduler(max_steps=5, val_every_steps=3)
        Watched(run)
        fit(run, ahead=ahead)
        told[ahead] = run.hooks
    batches = [("batch", number) for number in range(1, 6)]
    steps = [("step_end", number) for number in range(1, 6)]
    at_once = [call for pair in zip(batches, steps, strict=True) for call in pair]
    validations = [("validation_end", 3), ("validation_end", 5)]
    begins = ("fit_start", None)
    assert told[False].calls == [begins, *at_once[:6], validations[0], *at_once[6:], validations[1]]
    one_late = [batches[0], batches[1], steps[0], batches[2], steps[1], steps[2], validations[0]]
    one_late += [batches[3], batches[4], steps[3], steps[4], validations[1]]
    assert told[True].calls == [begins, *one_late]
    assert told[True].losses == told[False].losses


@pytest.mark.parametrize("ahead", [False, True])
def test_steps_that_are_not_finite_are_counted_and_end_the_run_where_there_are_too_many(tmp_path, ahead):
    run = parts(tmp_path, max_steps=9)
    run.options = dataclasses.replace(run.options, max_nonfinite_steps=3)
    bias = run.module.head.bias
    values = {2: float("nan"), 4: 0.0, 6: float("inf")}  # one step alone would not tell a count from a sum

    def change(step):
        if step in values:
            bias.data[3] = values[step]

    Watched(run, change)
    with pytest.raises(RunError, match="3 steps in a row"):
        fit(run, ahead=ahead)
    assert [step for step, *_ in run.hooks.losses] == list(range(1, 8))
    assert run.run.summary["skipped_steps"] == 4
    assert run.run.step == 7


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_that_is_not_finite_stops_the_run_where_the_recipe_says_so(tmp_path, ahead):
    run = parts(tmp_path, max_steps=9)
    run.options = dataclasses.replace(run.options, on_nonfinite="stop")
    bias = run.module.head.bias
    Watched(run, lambda step: bias.data.fill_(float("nan") if step == 3 else 0.0))
    with pytest.raises(RunError, match=r"in step 3.*on_nonfinite"):
        fit(run, ahead=ahead)
    assert [step for step, *_ in run.hooks.losses] == [1, 2]


def test_a_run_that_fails_waits_for_what_a_device_is_still_at(tmp_path, monkeypatch):
    def fail(step):
        if step == 4:
            raise OSError("the data are gone")

    monkeypatch.setattr(Moment, "has_come", lambda self: False)  # as of a step that was only just begun
    run = parts(tmp_path, max_steps=9)
    Watched(run, fail)
    with pytest.raises(OSError, match="gone"):
        fit(run, ahead=True)
    assert [step for step, *_ in run.hooks.losses] == [1, 2, 3]


@pytest.mark.parametrize("ahead", [False, True])
def test_nothing_is_untold_when_a_run_fails_or_is_stopped(tmp_path, ahead):
    def fail(step):
        if step == 4:
            raise OSError("the data are gone")

    run = parts(tmp_path, max_steps=9)
    Watched(run, fail)
    with pytest.raises(OSError, match="gone"):
        fit(run, ahead=ahead)
    assert [step for step, *_ in run.hooks.losses] == [1, 2, 3]

    run = parts(tmp_path, max_steps=9)
    Watched(run, lambda step: signal.raise_signal(signal.SIGTERM) if step == 4 else None)
    with pytest.raises(StoppedError):
        fit(run, ahead=ahead)
    assert [step for step, *_ in run.hooks.losses] == [1, 2, 3, 4]
