"""Fixtures of the tests of serving and registering: a stand-in for vLLM, model directories, checkpoints."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from automodel.checkpoint.manifest import write_manifest
from automodel.cli.main import main

FAKE_VLLM = Path(__file__).parent / "fake_vllm.py"
COMMAND = """
import signal
import sys
# as in a terminal: what nohup or a shell's & has let the tests ignore would stay ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import automodel_deploy.machine
automodel_deploy.machine.num_accelerators = lambda: 1  # without torch, whose import takes longer than all the rest
from automodel.cli.main import main
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def automodel(capfd):
    """Runs the command line in this process; `.start` in one of its own."""

    def run(*arguments, expect=0):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        stdout, stderr = capfd.readouterr()
        assert code == expect, f"exit code {code}\n{stdout}\n{stderr}"
        return SimpleNamespace(stdout=stdout, stderr=stderr)

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    run.start = start
    return run


@pytest.fixture
def port():
    """A port that is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def fake_vllm(tmp_path, monkeypatch):
    """Puts a stand-in called `vllm` first into PATH; call it to say how it behaves."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "vllm"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -u {FAKE_VLLM} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    monkeypatch.setattr("automodel_deploy.vllm.num_accelerators", lambda: 1)
    return lambda behaviour: monkeypatch.setenv("FAKE_VLLM", behaviour)


@pytest.fixture
def model_directory(tmp_path):
    """A directory that looks like a model's to whoever serves it."""
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (directory / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    return directory


@pytest.fixture
def recipe(tmp_path, port):
    """A recipe that serves by vLLM and registers in MLflow."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""\
deployment:
  serving_config:
    framework: vllm
    port: {port}
model_registry:
  backend: mlflow
  experiment_name: countries
  tracking_uri: sqlite:///{tmp_path}/mlflow.db
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def run_directory(tmp_path):
    """Makes `runs/<name>` as a run of 20 steps leaves it, without state; `adapter` is its adapter_config.json."""

    def make(name="countries-lora", adapter=None, model="HuggingFaceTB/SmolLM2-135M-Instruct"):
        run = tmp_path / "runs" / name
        for step in (10, 20):
            checkpoint = run / f"step_{step}"
            files = checkpoint / "model"
            files.mkdir(parents=True)
            kind = "config.json" if adapter is None else "adapter_config.json"
            (files / kind).write_text(json.dumps(adapter or {"model_type": "llama"}), encoding="utf-8")
            (files / "weights").write_text(f"of step {step}", encoding="utf-8")
            recipe = f"model:\n  _target_: causal-lm\n  pretrained_model_name_or_path: {model}\n"
            recipe += "optimizer:\n  lr: 0.001\n  betas: [0.9, 0.95]\n"
            (checkpoint / "recipe.yaml").write_text(recipe, encoding="utf-8")
            about = {"step": step, "metrics": {"loss": 1 / step}, "recipe_digest": "abc", "versions": {"torch": "2"}}
            write_manifest(checkpoint, about)
        lines = [json.dumps({"step": step, "loss": 1 / step, "lr": 1e-3}) for step in range(1, 21)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (run / "environment.json").write_text('{"versions": {"torch": "2"}}', encoding="utf-8")
        return run

    return make


@pytest.fixture
def is_alive():
    return _is_alive


def _is_alive(pid):
    """Whether a process runs; one that has ended and is not yet buried does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def processes_of():
    """The server's worker as its log tells, waited for."""

    def find(log, timeout=20):
        give_up = time.monotonic() + timeout
        while time.monotonic() < give_up:
            if log.exists() and (found := re.search(r"worker (\d+)", log.read_text(encoding="utf-8"))):
                return int(found[1])
            time.sleep(0.05)
        raise AssertionError(f"no worker in {log}")

    yield find
    for log in Path("logs").glob("*.log"):  # nothing stays behind, even when a test fails
        for pid in re.findall(r"worker (\d+)", log.read_text(encoding="utf-8")):
            if _is_alive(int(pid)):
                os.kill(int(pid), signal.SIGKILL)
