"""The real command, in a process of its own, with plugins on its path that exist as installed packages do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    return directory


@pytest.fixture
def install(site: Path) -> Install:
    """Write a package with its metadata: `install("x", plugin="...", other="...")`."""

    def install_package(name: str, version: str = "1.0", **modules: str) -> Path:
        package = site / name.replace("-", "_")
        package.mkdir()
        for module, text in {"__init__": "", **modules}.items():
            (package / f"{module}.py").write_text(text)
        info = site / f"{package.name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[automodel]\n{name} = {package.name}.plugin\n")
        return package

    return install_package


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Run `automodel` with these arguments."""

    def run_command(
        *arguments: str, python: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *python, "-m", "automodel.cli.main", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "NO_COLOR": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run_command
