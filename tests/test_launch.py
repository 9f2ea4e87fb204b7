"""Other ways to start many processes: torchrun, and the variables of Kubeflow's training operator."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import AUTOMODEL, metrics

TORCHRUN = Path(sys.executable).parent / "torchrun"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("module", [(AUTOMODEL,), pytest.param(("-m", "automodel"), marks=pytest.mark.slow)])
def test_torchrun_starts_the_command_or_the_module(automodel, recipe, tmp_path, module):
    command = [TORCHRUN, "--nproc_per_node=2", *module, "finetune", "llm", "-c", recipe, "step_scheduler.max_steps=2"]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2  saved") == 1
    assert metrics(tmp_path / "run").keys() == {1, 2}


def test_the_first_of_many_processes_profiles(automodel, recipe, tmp_path):
    process = automodel.start("train", "-c", recipe, "step_scheduler.max_steps=3", "--nproc-per-node", 2, "--profile")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stdout.count("profile of step 3 of random llama on cpu, in the first of 2 processes") == 1
    [communication] = [line for line in stdout.splitlines() if line.startswith("  communication")]
    assert float(communication.split()[1]) > 0
    assert sorted(path.name for path in (tmp_path / "run" / "profile").iterdir()) == [
        "summary.txt",
        "trace_step_3_3.json.gz",
    ]


def test_the_agent_reads_what_kubeflow_gives_a_pod(automodel, recipe, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"PET_NNODES": "1:2", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ID": "job", "PET_MAX_RESTARTS": "3"}
    given |= {"PET_RDZV_ENDPOINT": f"127.0.0.1:{port}", "PET_RDZV_CONF": "is_host=1,last_call_timeout=1"}
    words = ("train", "-c", recipe, "step_scheduler.max_steps=2", "--nproc-per-node", 2)
    process = automodel.start(*words, env=given)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stdout.count("step 2  saved") == 1


def test_options_of_the_agent_in_one_of_its_processes_are_an_error(automodel, recipe):
    process = automodel.start("train", "-c", recipe, "--nproc-per-node", 2, env={"RANK": "0", "WORLD_SIZE": "2"})
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert "--nproc-per-node: leave it out" in stderr
