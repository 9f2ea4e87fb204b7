"""The launcher `slurm`: a batch script that starts the run on all nodes, saves before the time limit, and requeues."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel.errors import InputError, RunError

_STOPPED_BY_USR1 = 138
"""Exit code of a run that saved and ended because SIGUSR1 came: 128 + 10."""


@dataclass(frozen=True)
class Slurm:
    """A batch job of Slurm.

    The nodes must share the file system of the recipe, the data and checkpoint.checkpoint_dir.

    Args:
        nodes: machines.
        gpus_per_node: of each; null asks for none.
        nproc_per_node: processes on each node; null is one for each GPU, or one.
        cpus_per_task: cores of a node; null leaves it to Slurm.
        mem: memory of a node, as Slurm writes it (`64G`); null leaves it to Slurm.
        time: the limit, as Slurm writes it (`4:00:00`); null is the partition's.
        partition: where to run.
        account: who pays.
        qos: quality of service.
        job_name: its name.
        logs: the directory of the logs, one file for each job.
        signal_seconds: how long before the time limit the run is told to save and end.
        requeue: put the job into the queue again when the limit came first, or it was preempted; it resumes by itself.
        max_restarts: how often processes are started anew within the job when one has died.
        exclusive: take whole nodes.
        setup: shell lines before the run, such as `module load cuda` or `source .venv/bin/activate`.
        env: environment variables of the run. Keep secrets out: they would stand in the script.
        options: further options of sbatch, such as `constraint: h100`.
    """

    nodes: int = 1
    gpus_per_node: int | None = None
    nproc_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    job_name: str = "automodel"
    logs: str = "logs"
    signal_seconds: int = 120
    requeue: bool = True
    max_restarts: int = 0
    exclusive: bool = False
    setup: list[str] | None = None
    env: dict[str, str] | None = None
    options: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise InputError(f"nodes must be at least 1, not {self.nodes}")

    def script(self, command: Sequence[str], files: Mapping[str, str]) -> str:
        """The batch script that runs `automodel` with the words of `command`; recipes are read where they lie."""
        processes = self.nproc_per_node or self.gpus_per_node or 1
        words = [*command, "--nnodes", str(self.nodes), "--nproc-per-node", str(processes)]
        words += ["--max-restarts", str(self.max_restarts), "--rdzv-backend", "c10d"]
        sbatch = {
            "job-name": self.job_name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "mem": self.mem,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "output": f"{self.logs}/%x-%j.out",
            "open-mode": "append",  # a requeued job writes on
            "signal": f"B:USR1@{self.signal_seconds}",
            **(self.options or {}),
        }
        flags = ["requeue" if self.requeue else "no-requeue", *(["exclusive"] if self.exclusive else [])]
        lines = ["#!/bin/bash"]
        lines += [f"#SBATCH --{name}={value}" for name, value in sbatch.items() if value is not None]
        lines += [f"#SBATCH --{name}" for name in flags]
        if self.setup:
            lines += ["", "set -e", *self.setup, "set +e"]
        lines += ["", "set -uo pipefail"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in (self.env or {}).items()]
        # srun does not take this over from sbatch since Slurm 22.05
        cores = "" if self.cpus_per_task is None else f"--cpus-per-task={self.cpus_per_task} "
        lines += [
            "",
            "# the nodes meet at the first one, at a port that other jobs on it do not have",
            'head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'endpoint="$head_node:$((20000 + SLURM_JOB_ID % 20000))"',
            "",
            "# Slurm tells this shell when time is nearly up or the job is preempted; the run is told, saves and ends",
            "trap 'kill -USR1 \"$run\" 2>/dev/null' USR1",
            "trap 'kill -TERM \"$run\" 2>/dev/null' TERM",
            f"srun --kill-on-bad-exit=1 {cores}automodel {shlex.join(words)} \\",
            '  --rdzv-endpoint "$endpoint" --rdzv-id "$SLURM_JOB_ID" &',
            "run=$!",
            "# wait returns when a signal comes, too, while the run is still saving",
            'while kill -0 "$run" 2>/dev/null; do wait "$run"; done',
            'wait "$run"; code=$?',
            'echo "automodel ended with exit code $code"',
        ]
        if self.requeue:
            lines += [f"if [ $code -eq {_STOPPED_BY_USR1} ]; then", '  scontrol requeue "$SLURM_JOB_ID"', "fi"]
        return "\n".join([*lines, "exit $code", ""])

    def submit(self, script: str, directory: Path) -> str:
        """Write the script into `directory`, hand it to sbatch, and return what sbatch says.

        Raises:
            InputError: there is no sbatch here.
            RunError: it refused.
        """
        directory.mkdir(parents=True, exist_ok=True)
        Path(self.logs).mkdir(parents=True, exist_ok=True)
        path = directory / "job.sbatch"
        path.write_text(script, encoding="utf-8")
        return run_tool(["sbatch", str(path)], None)


def run_tool(command: Sequence[str], text: str | None) -> str:
    """Run a scheduler's program and return its output.

    Raises:
        InputError: it is not on this machine.
        RunError: it failed.
    """
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(
            f"{command[0]} is not on this machine; --print-only shows what it would be given, to be taken elsewhere"
        ) from error
    if done.returncode:
        raise RunError(f"{command[0]} refused: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()
