"""What a disturbed run is compared with, and what is said of it."""

import hashlib
import json
from dataclasses import dataclass, field

import pytest
from automodel.checkpoint import manifest
from faults.recipe import KEEP, STEPS
from support import metrics


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nothing happened to ends with.

    Args:
        num_processes: that trained.
        losses: {step: loss} as metrics.jsonl has them.
        tensors: {file: checksum} of the safetensors files of the last checkpoint: of all bytes of the model's, and of
            what is in those of the state, whose header safetensors writes in a random order.
        seconds: from the command to the first step.
    """

    num_processes: int
    losses: dict[int, float]
    tensors: dict[str, str]
    seconds: float

    @classmethod
    def of(cls, run, num_processes, seconds):
        """Read a run that is done.

        Raises:
            ValueError: its last checkpoint is not there or not whole.
        """
        last = run / f"step_{STEPS}"
        if problems := manifest.problems(last):
            raise ValueError(f"the last checkpoint is not whole: {problems}")
        tensors = {path.name: manifest.checksum(path) for path in last.glob("model/*.safetensors")}
        tensors |= {path.name: _contents(path) for path in last.glob("state/*.safetensors")}
        return cls(num_processes, metrics(run), tensors, seconds)


def _contents(path):
    """A checksum of what is in a safetensors file, which begins with the length of its header, then the header."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True)
    return hashlib.sha256(header.encode() + content[end:]).hexdigest()


@dataclass
class Verdict:
    """What became of one disturbed run.

    Args:
        same: `bit for bit` when all losses and the last checkpoint's tensors are those of the undisturbed run,
            `to 1e-5` when only the losses are, and only so far; None otherwise.
        complaints: whatever else was not as it should be.
        told: exit codes and outputs of its commands.
    """

    number: int
    fault: str
    same: str | None = None
    resumed: list[int] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    seconds: float = 0

    @property
    def problems(self):
        """One line each; none for a run that took its fault as it should."""
        other_end = [] if self.same else ["the end is not that of the undisturbed run"]
        return [*other_end, *self.torn, *self.lost, *self.complaints]


def judge(fault, number, trial):
    """Compare what a disturbed run left with the undisturbed one."""
    witness, expected = trial.witness, trial.undisturbed
    verdict = Verdict(number, fault.name, resumed=witness.resumed, torn=witness.torn, lost=witness.lost)
    verdict.complaints += witness.passed_over
    verdict.told = [str(ending) for ending in trial.endings]
    verdict.complaints += [
        f"command {turn} {complaint}"
        for turn, ending in enumerate(trial.endings, start=1)
        for complaint in ending.complaints()
    ]
    has_trained = "nothing to train" not in trial.endings[-1].stdout
    if has_trained and len(witness.whole) > KEEP:
        verdict.complaints.append(f"keeps {sorted(witness.whole)}, which are more than {KEEP}")
    try:
        found = Undisturbed.of(trial.run, fault.num_processes, expected.seconds)
    except (ValueError, OSError) as error:
        verdict.complaints.append(str(error))
        return verdict
    if (found.losses, found.tensors) == (expected.losses, expected.tensors):
        verdict.same = "bit for bit"
    elif fault.num_processes > 1 and found.losses == pytest.approx(expected.losses, rel=1e-5):
        verdict.same = "to 1e-5"
    return verdict
