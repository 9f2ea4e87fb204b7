"""The command line as a user sees it: help, exit codes, messages, and what it does not import."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from automodel.cli.main import VERBS, main

Run = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[..., Path]

RECIPE = "optimizer:\n  _target_: torch.optim.AdamW\n  lr: 1e-3\nrng: {seed: 3}\n"
MODELS = """
from automodel import Provider, hookimpl
@hookimpl
def model_providers():
    return [Provider("tiny", "models_x.things:model", aliases=("nemo_automodel.Tiny",), summary="a tiny model")]
@hookimpl
def dataset_providers():
    return [Provider("lines", "models_x.things:lines")]
"""
THINGS = '''
import torch
def model(path: str, layers: int = 2):
    """Args:
        path: where it is.
    """
def lines(path: str): ...
'''
COMPLETE = "model: {_target_: tiny, path: m}\ndataset: {_target_: lines, path: d}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"], ["--version"], ["validate", "--help"], ["validate", "-c", "r.yaml"], ["plugins"],
        ["plugins", "show", "adafactor"], ["plugins", "show", "automodel-core"], ["train", "--help"],
    ],
)  # fmt: skip
def test_torch_and_targets_are_not_imported(words: list[str], run: Run, install: Install, tmp_path: Path) -> None:
    install("models-x", plugin=MODELS, things=THINGS)
    (tmp_path / "r.yaml").write_text(RECIPE + COMPLETE)
    result = run(*words, python=("-X", "importtime"))
    assert result.returncode == 0, result.stderr
    imported = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    assert "automodel.errors" in imported
    assert not {"torch", "transformers", "numpy", "models_x.things", "automodel.training"} & imported


def test_help_lists_every_verb(run: Run) -> None:
    result = run("--help")
    assert all(f"  {verb} " in result.stdout for verb in VERBS)


def test_a_valid_recipe_is_summed_up(run: Run, install: Install, tmp_path: Path) -> None:
    install("models-x", plugin=MODELS, things=THINGS)
    (tmp_path / "r.yaml").write_text(RECIPE + COMPLETE)
    result = run("validate", "-c", "r.yaml")
    assert result.returncode == 0
    head, *rows = result.stdout.splitlines()
    assert head == "r.yaml: valid"
    assert ["model", "tiny", "models-x"] in [row.split() for row in rows]
    assert ["optimizer", "torch.optim.AdamW", "torch.optim.adamw"] in [row.split() for row in rows]
    assert ["lr_scheduler", "constant", "automodel-core", "(default)"] in [row.split() for row in rows]


def test_an_invalid_recipe_ends_with_2_and_one_message(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("rng: {sed: 3}\n")
    result = run("validate", "-c", "r.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: r.yaml: 1 problem\n")
    assert (
        "r.yaml:1:7: rng.sed: `seeds` takes no `sed`; did you mean `seed`?\n    rng: {sed: 3}\n          ^"
        in result.stderr
    )
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", [["--traceback", "validate"], ["validate", "--traceback"]])
def test_traceback_may_stand_anywhere(words: list[str], run: Run) -> None:
    result = run(*words, "-c", "absent.yaml")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "error: absent.yaml: 1 problem\nabsent.yaml: cannot be read: No such file" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["valdate"], "there is no command `valdate`; did you mean `validate`?"),
        (["validate"], "Missing option '-c'"),
        (["validate", "r.yaml"], "write `-c r.yaml`"),
        (["validate", "-c", "r.yaml", "--allow-targt", "x"], "Did you mean '--allow-target'?"),
        (["validate", "--confg", "r.yaml"], "Did you mean '--config'?"),
        (["validate", "-c", "r.yaml", "--seed", "3"], "No such option"),
        (["validate", "-c", "r.yaml", "stray"], "unexpected extra argument"),
        (["plugins", "show", "adafactr"], "no plugin or provider is called `adafactr`; did you mean `adafactor`?"),
        (["plugins", "shw"], "No such command 'shw'"),
    ],
)
def test_a_wrong_command_line_ends_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_overrides_and_options_interleave(run: Run, install: Install, tmp_path: Path) -> None:
    install("models-x", plugin=MODELS, things=THINGS)
    (tmp_path / "r.yaml").write_text(COMPLETE)
    (tmp_path / "s.yaml").write_text("rng: {seed: 3}\n")
    words = ["--model.layers", "4", "-c", "r.yaml", "rng.seed=4", "--config=s.yaml", "--dataset.path=x=y.yaml"]
    assert run("validate", *words).stdout.startswith("r.yaml + s.yaml: valid\n")
    result = run("validate", *words, "optimizer.lr=-x", "--model.layers", "-c")
    assert "command line: optimizer.lr=-x: expected number" in result.stderr
    assert "command line: --model.layers -c: expected integer, found `-c` (string)" in result.stderr


def test_a_function_of_another_package_needs_allow_target(run: Run, install: Install, tmp_path: Path) -> None:
    install("models-x", plugin=MODELS, things=THINGS)
    (tmp_path / "r.yaml").write_text(COMPLETE.replace("lines, path: d", "json.loads, s: d"))
    assert "add --allow-target json" in run("validate", "-c", "r.yaml").stderr
    assert run("validate", "-c", "r.yaml", "--allow-target", "json").returncode == 0


def test_no_arguments_show_the_help(run: Run) -> None:
    assert "Commands:" in (result := run()).stdout + result.stderr


def test_a_command_of_a_plugin_is_imported_when_it_runs(run: Run, install: Install) -> None:
    install(
        "verbs",
        plugin="from automodel import Provider, hookimpl\n"
        "@hookimpl\ndef cli_commands():\n"
        "    return [Provider('greet', 'verbs.greet:greet', summary='Say hello.'),\n"
        "            Provider('lost', 'verbs.absent:x'), Provider('stop', 'verbs.greet:stop')]\n",
        greet="import click\n@click.command()\ndef greet():\n    click.echo('hello')\n"
        "@click.command()\ndef stop():\n    raise KeyboardInterrupt\n",
    )
    listing = run("--help", python=("-X", "importtime"))
    assert "greet" in listing.stdout
    assert "Say hello." in listing.stdout
    assert "verbs.greet" not in listing.stderr
    assert run("greet").stdout == "hello\n"
    lost = run("lost")
    assert lost.returncode == 1
    assert "error: the command `lost` of the plugin verbs cannot be imported" in lost.stderr
    assert run("stop").returncode == 130


ENDING = """
import atexit, logging.handlers, os, sys, threading, time
from automodel.cli import main

class Freed:
    def __del__(self):
        print("freed")

def slowly():
    time.sleep(0.2)
    print("thread done")

def command():
    global kept
    kept = Freed()
    atexit.register(print, "at exit")
    left_open.append(open("left_open.txt", "w"))
    left_open[0].write("all")
    logging.getLogger().addHandler(logging.handlers.MemoryHandler(9, target=logging.StreamHandler(sys.stdout)))
    logging.warning("logged")
    threading.Thread(target=slowly).start()
    if "fail" in sys.argv:
        raise ValueError("unexpected")
    return 3

left_open = []
main.main = command
if "full" in sys.argv:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
main.run()
"""


@pytest.mark.parametrize(("how", "code"), [("well", 3), ("fail", 1), ("full", 120)])
def test_a_command_ends_without_freeing_what_the_system_frees(how: str, code: int, tmp_path: Path) -> None:
    words = [sys.executable, "-c", ENDING, how]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=buffered)
    assert done.returncode == code
    assert (tmp_path / "left_open.txt").read_text() == "all"
    assert ("ValueError: unexpected" in done.stderr) == (how == "fail")
    if how != "full":
        assert done.stdout.splitlines() == ["thread done", "at exit", "logged", *(["freed"] if how == "fail" else [])]
