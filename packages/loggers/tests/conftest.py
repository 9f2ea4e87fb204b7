"""A run as core describes it, and an environment without wandb's settings of this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from automodel.interfaces import Run
from automodel.notices import strictness


@pytest.fixture
def run(tmp_path: Path) -> Run:
    directory = tmp_path / "run"
    directory.mkdir()
    config = {"optimizer": {"lr": 1e-3}, "model": {"token": "***"}}
    return Run("tiny", directory, config, num_parameters=100, num_trainable_parameters=10)


@pytest.fixture(autouse=True)
def notices_said_anew() -> Iterator[None]:
    with strictness(False):
        yield


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no settings file, and a server that is not there."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "settings"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
