"""Fixtures of the end-to-end tests: a command, a data directory, and a recipe that trains in a second."""

import pytest
import torch
from support import COUNTRIES, TINY_MODEL, Command


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def automodel(tmp_path, capfd):
    return Command(tmp_path, capfd)


@pytest.fixture
def data(tmp_path):
    """A directory with the first rows of the real data."""
    directory = tmp_path / "data"
    directory.mkdir()
    for name, num_rows in (("train", 40), ("validation", 10)):
        lines = (COUNTRIES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (directory / f"{name}.jsonl").write_text("".join(lines[:num_rows]), encoding="utf-8")
    return directory


@pytest.fixture
def recipe(tmp_path, data):
    """A recipe that trains a tiny Llama in a second, written to a file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        TINY_MODEL
        + f"""
dataset:
  _target_: text-instruction
  data_path: {data}/train.jsonl
dataloader:
  batch_size: 4
step_scheduler:
  max_steps: 6
  grad_acc_steps: 2
optimizer:
  lr: 1e-2
checkpoint:
  checkpoint_dir: run
rng:
  seed: 7
""",
        encoding="utf-8",
    )
    return path
