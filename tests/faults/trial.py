"""One run that is disturbed, from the first command to the verdict."""

import random
import shutil
import time
from contextlib import contextmanager

from automodel.training.metrics import read_metrics
from faults.disk import Disk
from faults.processes import Command, EndedError, Hangs
from faults.recipe import KEEP, RECIPE, STEPS
from faults.verdict import Undisturbed, Verdict, judge
from faults.witness import Witness


class Trial:
    """A run of a recipe, and what a fault needs to disturb it.

    Args:
        place: a directory of its own, which does not exist.
        words: of the command line, after the recipe's.
        undisturbed: the run it is compared with.
        moments: chooses when and how much.
        disk: what its checkpoints are written to.
    """

    def __init__(self, place, words, undisturbed, moments, disk=Disk):
        place.mkdir()
        self.place, self.undisturbed, self.moments = place, undisturbed, moments
        self.disk = disk(place / "disk")
        self.run = place / "disk" / "run"
        self.witness = Witness(self.run, KEEP)
        (place / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        self.words = [
            *("train", "-c", str(place / "recipe.yaml"), f"checkpoint.checkpoint_dir={self.run}"),
            *map(str, words),
        ]
        self.endings = []

    def start(self):
        """Start the command: the same each time."""
        self.witness.starting()
        self.command = Command(self.words, self.place, len(self.endings) + 1)

    def until(self, ready):
        """Wait for the command to have come to something, listening to what it says."""

        def heard():
            self.witness.hear(self.command.stdout)
            return ready()

        self.command.until(heard)

    def end(self, meanwhile=lambda: None):
        """Wait for the command to end by itself, doing something `meanwhile`, and look what it has left."""
        try:
            self.until(lambda: bool(meanwhile()))
        except EndedError:
            self.take(self.command.ending())

    def finish(self, may_fail_with=None, again=None):
        """Start the same command again until it ends well: once, or thrice where it may be refused by these words.

        Args:
            may_fail_with: words that the fault explains.
            again: called with the command line instead of starting the command; returns its `Ending`.
        """
        for is_first in (True, False, False):
            ending = self.endings[-1]
            if ending.exit_code == 0 or not (is_first or (may_fail_with and may_fail_with in ending.stderr)):
                return
            if again is None:
                self.start()
                self.end()
            else:  # it is heard only when it has ended, and must be alone until then
                self.left_behind()
                self.witness.starting()
                self.take(again(self.words))

    def left_behind(self):
        """A complaint when processes of the run are there long after its end."""
        give_up = time.monotonic() + 20
        while left := self.command.processes():
            if time.monotonic() > give_up:
                return [f"{len(left)} processes are left behind"]
            time.sleep(0.02)
        return []

    def take(self, ending):
        """Take in how a command ended."""
        self.endings.append(ending)
        self.witness.hear(ending.stdout)
        if ending.exit_code == 0:
            self.witness.has_trained()
        self.witness.look()

    @contextmanager
    def paused(self, ready, within=0.15):
        """All processes paused, at a random moment of the seconds `within` after `ready` and while that holds."""
        while True:
            self.until(ready)
            time.sleep(self.moments.uniform(0, within))
            self.command.pause()
            if ready():
                break
            self.command.go_on()
        self.witness.look()
        yield
        self.command.go_on()

    def some_moment(self, first_step=0):
        """When it may be disturbed: one in five times while it starts, else after a random step."""
        if first_step == 0 and self.moments.random() < 0.2:
            moment = self.command.started + self.moments.uniform(0, self.undisturbed.seconds)
            # on a busy machine starts differ, and the undisturbed run's may have been the longer one
            return lambda: time.monotonic() >= moment or self.last_step() > 0
        step = self.moments.randint(first_step, STEPS - 4)
        return lambda: self.last_step() >= step

    def last_step(self):
        """The last one in metrics.jsonl."""
        lines = read_metrics(self.run / "metrics.jsonl")
        return int(lines[-1]["step"]) if lines else 0

    def is_saving(self):
        return any(self.run.glob("step_*.incomplete"))


def run_undisturbed(place, words, num_processes):
    """Run the recipe to its end; what disturbed runs are compared with.

    Raises:
        ValueError: it failed.
    """
    trial = Trial(place, words, None, random.Random(0))
    with trial.disk:
        trial.start()
        try:
            trial.until(trial.last_step)
            seconds = time.monotonic() - trial.command.started
            trial.end()
        except EndedError:
            trial.take(trial.command.ending())
        finally:
            trial.command.kill()
        if trial.endings[0].exit_code:
            raise ValueError(f"the undisturbed run failed: {trial.endings[0]}")
        return Undisturbed.of(trial.run, num_processes, seconds)


def run_trial(fault, number, seed, place, words, undisturbed, disk, again=None):
    """Disturb one run, start its command again and judge what became of it.

    A run that had ended before its moment came is run once more, with another moment.

    Args:
        fault: one of `faults.kinds.FAULTS`.
        number: of the run in the campaign; with `seed` it decides on the moment.
        place: an empty directory for it.
        words: overrides for every command.
        again: called with the command line instead of starting the command after the fault; returns its `Ending`.
    """
    started = time.monotonic()
    for attempt in range(5):
        moments = random.Random(f"{seed}/{number}/{attempt}")
        disk_of_trial = disk if fault.fills_disk else Disk
        trial = Trial(place / str(attempt), [*fault.words, *words], undisturbed, moments, disk_of_trial)
        with trial.disk:
            try:
                verdict = _disturb(fault, number, trial, again)
            finally:
                trial.command.kill()
        shutil.rmtree(trial.place)
        if verdict is not None:
            verdict.seconds = time.monotonic() - started
            return verdict
    return Verdict(number, fault.name, complaints=["all five attempts had ended before they were disturbed"])


def _disturb(fault, number, trial, again):
    """The verdict on a run, or None when it had ended before its moment came."""
    complaints = []
    try:
        trial.start()
        fault.disturb(trial)
        if (code := trial.endings[0].exit_code) not in fault.exit_codes:
            complaints.append(f"the disturbed command ended with exit code {code}")
        trial.finish(fault.may_fail_with, again)
        if code := trial.endings[-1].exit_code:
            complaints.append(f"the command that was started again ended with exit code {code}")
        complaints += trial.left_behind()
    except EndedError:
        ending = trial.command.ending()
        if ending.exit_code == 0:
            return None
        complaints.append("the command failed before it was disturbed")
        trial.endings.append(ending)
    except Hangs as error:
        complaints.append(f"the command {error}")
        trial.endings.append(trial.command.kill())
    verdict = judge(fault, number, trial)
    verdict.complaints += complaints
    return verdict
