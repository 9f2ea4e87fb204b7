"""Runs that are disturbed at random moments, by hundreds: does each end as if nothing had happened?

uv run python tests/faults/campaign.py --runs 200 --seed 0 --jobs 2 --write docs/reliability.md
uv run python tests/faults/campaign.py --seed 0 --only 17
uv run python tests/faults/campaign.py --runs 200 -- checkpoint.async=true

The exit code is 1 when more than one run in a hundred does not, or any resumes from a torn or loses a whole checkpoint.
"""

import argparse
import os
import platform
import random
import re
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.disk import small_disk
from faults.kinds import FAULTS
from faults.trial import run_trial, run_undisturbed

WANTED_SHARE = 0.99


def fault_of(number, seed):
    """The fault of a run: in random order, evenly; those of two processes, which take both cores, a third as often."""
    deck = [fault for fault in FAULTS for _ in range(3 if fault.num_processes == 1 else 1)]
    turn, place = divmod(number, len(deck))
    return random.Random(f"{seed}/{turn}").sample(deck, len(deck))[place]


def run_campaign(numbers, seed, jobs, words, root, disk):
    """Disturb these runs and yield their verdicts; never more than `jobs` training processes at once."""
    faults = {number: fault_of(number, seed) for number in numbers}
    for num_processes in sorted({fault.num_processes for fault in faults.values()}):
        alike = [number for number in numbers if faults[number].num_processes == num_processes]
        launch = ("--nproc-per-node", num_processes) if num_processes > 1 else ()
        undisturbed = run_undisturbed(root / f"undisturbed_{num_processes}", [*launch, *words], num_processes)
        pool = ThreadPoolExecutor(max(1, jobs // num_processes))
        try:
            waiting = [
                pool.submit(run_trial, faults[number], number, seed, place(root, number), words, undisturbed, disk)
                for number in alike
            ]
            for done in as_completed(waiting):
                yield done.result()
        finally:  # when interrupted, those under way end and kill their processes
            pool.shutdown(cancel_futures=True)


def place(root, number):
    """The directory of a run."""
    directory = root / f"run_{number}"
    directory.mkdir()
    return directory


def table(verdicts):
    """The figures as Markdown: a line for each fault, and one for all."""
    columns = {
        "runs": lambda verdict: True,
        "same losses and weights": lambda verdict: verdict.same is not None,
        "went on from a checkpoint": lambda verdict: verdict.resumed,
        "resumed from a torn one": lambda verdict: verdict.torn,
        "lost a whole one": lambda verdict: verdict.lost,
        "other complaints": lambda verdict: verdict.complaints,
    }
    groups = {fault.name: [verdict for verdict in verdicts if verdict.fault == fault.name] for fault in FAULTS}
    rows = [f"| fault | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, group in [*groups.items(), ("**all**", verdicts)]:
        counts = [str(sum(bool(holds(verdict)) for verdict in group)) for holds in columns.values()]
        rows.append(f"| {name} | {' | '.join(counts)} |")
    return "\n".join(rows)


def passed(verdicts):
    """Whether enough runs took their faults as they should."""
    good = sum(not verdict.problems for verdict in verdicts)
    return good >= WANTED_SHARE * len(verdicts) and not any(verdict.torn or verdict.lost for verdict in verdicts)


def report(verdict):
    """A line for a run; for one that failed, how to repeat it and what its commands said."""
    went = f"went on from {', '.join(f'step_{step}' for step in verdict.resumed)}" if verdict.resumed else "began anew"
    line = f"run {verdict.number}: {verdict.fault}; {went}; ends the same {verdict.same} ({verdict.seconds:.0f} s)"
    if not verdict.problems:
        return line
    problems = "\n".join(f"  {problem}" for problem in verdict.problems)
    told = "\n".join(f"command {turn}: {text}" for turn, text in enumerate(verdict.told, start=1))
    return f"{line}\nFAILED; repeat it with --only {verdict.number}\n{problems}\n{told}"


def machine():
    """This machine in words."""
    models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    return f"{len(os.sched_getaffinity(0))} cores ({models[0] if models else platform.machine()})"


def summary(verdicts, command, disk, minutes):
    """What was done and found, as Markdown."""
    good = sum(not verdict.problems for verdict in verdicts)
    identical = sum(verdict.same == "bit for bit" for verdict in verdicts)
    share = f"{good} of {len(verdicts)} runs ({good / len(verdicts):.1%}) ended as if nothing had happened"
    return f"""{share}, {identical} of them bit for bit.
{date.today()}, {machine()}; torch {version("torch")}; {minutes:.0f} minutes. Disks were {disk.how}.

```bash
{command}
```

{table(verdicts)}"""


def write(document, text):
    """Put the figures between the marks of a document."""
    before, begin, rest = document.read_text(encoding="utf-8").partition("<!-- figures -->\n")
    _, end, after = rest.partition("<!-- /figures -->")
    assert begin and end, f"{document} has no marks for the figures"
    document.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def options():
    """The command line: ours before `--`, overrides of every run after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="training processes at once")
    parser.add_argument("--only", type=int, nargs="+", help="these numbers of the campaign")
    parser.add_argument("--write", type=Path, help="a document with marks for the figures")
    parser.add_argument("overrides", nargs="*", help="of every run, after --")
    given = parser.parse_args()
    if given.only and given.write:
        parser.error("--write is for the figures of all runs, not of --only some")
    return given


def main():
    """Run the campaign, print each verdict as it comes, and write the figures."""
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    begun, verdicts = time.monotonic(), []
    numbers = given.only or range(given.runs)
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        root = Path(name)
        disk = small_disk(root / "scratch")
        for verdict in run_campaign(numbers, given.seed, given.jobs, given.overrides, root, disk):
            verdicts.append(verdict)
            print(f"[{len(verdicts)}/{len(numbers)}] {report(verdict)}", flush=True)
    command = ["uv run python tests/faults/campaign.py", f"--runs {given.runs} --seed {given.seed} --jobs {given.jobs}"]
    command += ["--", *given.overrides] if given.overrides else []
    text = summary(verdicts, " ".join(command), disk, (time.monotonic() - begun) / 60)
    print(text)
    if given.write:
        write(given.write, text)
    return 0 if passed(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
