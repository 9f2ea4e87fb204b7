"""Tiny models, each trained once for all tests of this package, and the command that exports them."""

import shutil

import pytest
import tiny_vlm
import torch
from automodel.cli.main import main
from automodel_deploy.export import Export, export_checkpoint
from support import COUNTRIES, ROOT, TINY_MODEL, Command

LORA = "peft: {_target_: lora, target_modules: all-linear, r: 4}\n"
REST = """
dataloader: {{batch_size: 2}}
step_scheduler: {{max_steps: 3}}
optimizer: {{lr: 1e-2}}
checkpoint: {{checkpoint_dir: {directory}/run}}
rng: {{seed: 7}}
"""


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(directory, model, dataset):
    """Train in a directory and return the run's directory."""
    recipe = directory / "recipe.yaml"
    recipe.write_text(model + dataset + REST.format(directory=directory), encoding="utf-8")
    assert main(["train", "-c", str(recipe)]) == 0
    return directory / "run"


def text_rows(directory):
    lines = (COUNTRIES / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "rows.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    return f"dataset: {{_target_: text-instruction, data_path: {directory}/rows.jsonl}}"


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """The run of a tiny Llama."""
    directory = tmp_path_factory.mktemp("full")
    return trained(directory, TINY_MODEL, text_rows(directory))


@pytest.fixture(scope="session")
def lora(tmp_path_factory):
    """The run of an adapter on a tiny Llama."""
    directory = tmp_path_factory.mktemp("lora")
    return trained(directory, TINY_MODEL + LORA, text_rows(directory))


def vision_language_run(family, directory):
    base = tiny_vlm.save(family, directory / "base")
    model = f"model: {{_target_: image-text-to-text, pretrained_model_name_or_path: {base}}}\n"
    digits = ROOT / "examples" / "data" / "digits" / "train.parquet"
    rows = f"{{_target_: image-text-pairs, data_path: {digits}, answer_column: digit, limit_dataset_samples: 8}}"
    return trained(directory, model, f"dataset: {rows}")


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory):
    """The run of a tiny Gemma 3."""
    return vision_language_run("gemma3", tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory):
    """The run of a tiny Qwen3-VL."""
    return vision_language_run("qwen3_vl", tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture
def run(full, tmp_path):
    """A copy of the tiny Llama's run."""
    return shutil.copytree(full, tmp_path / "run")


@pytest.fixture(scope="session")
def exported_once(full, tmp_path_factory):
    """The tiny Llama's run with its export in both formats; not to be changed."""
    run = shutil.copytree(full, tmp_path_factory.mktemp("exported") / "run")
    export_checkpoint(run, Export(formats=["safetensors", "pytorch"]))
    return run


@pytest.fixture
def exported_run(exported_once, tmp_path):
    """A copy of it."""
    return shutil.copytree(exported_once, tmp_path / "run")


@pytest.fixture
def automodel(tmp_path, capfd):
    return Command(tmp_path, capfd)


@pytest.fixture
def export(automodel, tmp_path):
    """Exports a run by settings of `export_config`, and returns what the command printed."""

    def call(checkpoint, *overrides, expect=0, **settings):
        lines = "".join(f"    {name}: {value}\n" for name, value in settings.items())
        config = f"checkpoint_management:\n  export_config:\n{lines}" if settings else "{}\n"
        (tmp_path / "export.yaml").write_text(config, encoding="utf-8")
        return automodel("export", "-c", "export.yaml", "--checkpoint", checkpoint, *overrides, expect=expect)

    return call
