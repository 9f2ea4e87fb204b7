"""What is seen of a run's checkpoints from outside: which are whole, which are lost, which one was gone on from."""

import re

from automodel.checkpoint import directory, manifest


class Witness:
    """Looks at the checkpoints of a run before and after whatever happens to it, and keeps what is not as it must be.

    Args:
        run: the run's directory.
        keep: how many whole checkpoints the run keeps; older ones may go when there are as many newer ones.
    """

    def __init__(self, run, keep):
        self.run = run
        self.keep = keep
        self.whole = {}  # step: checksum of the manifest, which has those of all other files
        self.resumed = []  # steps
        self.torn = []
        self.lost = []
        self.passed_over = []
        self._before = {}

    def look(self):
        """See which checkpoints are whole now, and whether one that was is lost."""
        now = {}
        for step, path in directory.checkpoints(self.run):
            if not manifest.problems(path):
                now[step] = manifest.checksum(path / manifest.MANIFEST)
        for step, checksum in self.whole.items():
            has_left = sum(newer > step for newer in now) >= self.keep
            if now.get(step) != checksum and not has_left:
                found = "changed" if step in now else "gone or damaged"
                self.lost.append(f"step_{step}, which was whole, is {found}; whole are {sorted(now)}")
        self.whole = now

    def damaged(self, step):
        """A checkpoint was damaged on purpose: it is not the run's to keep."""
        del self.whole[step]

    def starting(self):
        """Look before the command is started: what is there and not whole must not be gone on from."""
        self.look()
        self._before = {step: step in self.whole for step, _ in directory.checkpoints(self.run)}
        self._heard = 0

    def hear(self, stdout):
        """Take in what the command has said so far; a checkpoint that it made itself is verified now."""
        steps = [int(step) for step in re.findall(r"^resuming from \S*step_(\d+)", stdout, re.M)]
        for number, step in enumerate(steps[self._heard :], start=self._heard):
            self.resumed.append(step)
            wrong = [] if self._before.get(step) else manifest.problems(self.run / f"step_{step}")
            if wrong:
                self.torn.append(f"resumed from step_{step}, which is damaged: {'; '.join(wrong)}")
            if number == 0 and step < max(self.whole_before, default=0):
                self.passed_over.append(f"resumed from step_{step}, although {self.whole_before} were whole")
        self._heard = len(steps)

    def has_trained(self):
        """The command has ended well: it must have gone on from a checkpoint if there was one."""
        if self.whole_before and not self._heard:
            self.passed_over.append(f"began anew, although {self.whole_before} were whole")

    @property
    def whole_before(self):
        """The steps of the whole checkpoints before the command was started."""
        return [step for step, is_whole in self._before.items() if is_whole]
