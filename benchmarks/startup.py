"""Wall time of the commands that must not import torch, beside an empty Python.

uv run python benchmarks/startup.py [--runs 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AUTOMODEL = str(Path(sys.executable).parent / "automodel")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import automodel": [sys.executable, "-c", "import automodel"],
    "automodel --help": [AUTOMODEL, "--help"],
    "automodel plugins": [AUTOMODEL, "plugins"],
    "automodel validate (quick start)": [AUTOMODEL, "validate", "-c", "examples/quickstart.yaml"],
    "automodel validate (production)": [AUTOMODEL, "validate", "-c", "examples/production_training_pipeline.yaml"],
}


def main() -> None:
    """Run the commands in turn and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            env = {**os.environ, "DATA_PATH": "data"}
            subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print("| command | median, s | above an empty Python, s |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| `{name}` | {median:.3f} | {median - medians['python -c pass']:.3f} |")


if __name__ == "__main__":
    main()
