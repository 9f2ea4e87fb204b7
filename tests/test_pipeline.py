"""`automodel pipeline`: from data to an answering endpoint, each stage done once."""

import re
import signal
import time

import pytest
from automodel.training.metrics import read_metrics

MANAGEMENT = """
checkpoint_management:
  checkpoint_config:
    enabled: true
    save_interval_steps: 2
    keep_last_n_checkpoints: 2
    validate_on_save: true
  export_config:
    formats: ["safetensors", "pytorch"]
    optimization_level: "O2"
model_registry:
  backend: "mlflow"
  experiment_name: "tiny_training"
"""
DEPLOYMENT = """
deployment:
  serving_config:
    framework: transformers
    port: PORT
"""


@pytest.fixture
def words(recipe, data, tmp_path):
    """The pipeline's recipes: one that trains, one for what comes after."""
    (tmp_path / "after.yaml").write_text(MANAGEMENT)
    rows = f"validation_dataset={{_target_: text-instruction, data_path: {data}/validation.jsonl}}"
    return ("pipeline", "-c", recipe, "-c", "after.yaml", rows)


def run(automodel, *words, expect=0, **env):
    process = automodel.start(*words, env=env)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == expect, f"exit code {process.returncode}\n{stdout}\n{stderr}"
    return stdout, stderr


def stages(stdout):
    """The stages that were run."""
    return re.findall(r"^== (\w+)$", stdout, re.M)


def skipped(stdout):
    """The stages that were left out."""
    return re.findall(r"^(\w+): nothing has changed since it was done", stdout, re.M)


def registered(name):
    from mlflow import MlflowClient

    return MlflowClient("sqlite:///mlflow.db").search_model_versions(f"name='{name}'")


def test_a_stage_that_is_done_is_left_out(automodel, words, tmp_path):
    fewer = (*words[:-1], "model_registry=null", "checkpoint_management.export_config.formats=[safetensors]")
    stdout, _ = run(automodel, *fewer)
    assert stages(stdout) == ["train", "export"]
    assert "is whole; the recipe has no validation_dataset to measure it on" in stdout
    assert (tmp_path / "run" / "exports" / "step_6-O2" / "safetensors" / "model.safetensors").exists()
    stdout, _ = run(automodel, *fewer)
    assert (stages(stdout), skipped(stdout)) == ([], ["train", "export"])


@pytest.mark.slow
def test_each_stage_is_done_once_and_again_only_where_something_has_changed(automodel, words, tmp_path):
    stdout, _ = run(automodel, *words)
    assert stages(stdout) == ["train", "validate", "export", "register"]
    exported = tmp_path / "run" / "exports" / "step_6-O2"
    assert {path.name for path in exported.iterdir()} == {"safetensors", "pytorch"}
    assert '"val_loss"' in stdout
    [version] = registered("tiny_training")
    assert version.version in ("1", 1)

    stdout, _ = run(automodel, *words)
    assert (stages(stdout), skipped(stdout)) == (["register"], ["train", "validate", "export"])
    assert "already registered as version 1 of tiny_training" in stdout

    # another level is another export, and so another version of the model
    next((exported / "pytorch").glob("*.bin")).write_bytes(b"torn")
    stdout, _ = run(automodel, *words, "checkpoint_management.export_config.optimization_level=O1")
    assert (stages(stdout), skipped(stdout)) == (["export", "register"], ["train", "validate"])
    assert len(registered("tiny_training")) == 2

    # an export that is damaged is made again, and other rows are measured again
    validation = tmp_path / "data" / "validation.jsonl"
    validation.write_text("".join(validation.read_text().splitlines(keepends=True)[:5]))
    stdout, _ = run(automodel, *words)
    assert (stages(stdout), skipped(stdout)) == (["validate", "export", "register"], ["train"])

    # a checkpoint that is damaged is made again, although an older whole one is there
    (tmp_path / "run" / "step_6" / "model" / "model.safetensors").write_bytes(b"torn")
    stdout, _ = run(automodel, *words)
    assert stages(stdout)[0] == "train"
    assert "resuming from run/step_4" in stdout


@pytest.mark.slow
def test_a_pipeline_that_is_killed_while_it_trains_goes_on(automodel, words, tmp_path):
    long = ("step_scheduler.max_steps=200", "checkpoint_management.checkpoint_config.validate_on_save=false")
    process = automodel.start(*words, *long)
    while not (lines := read_metrics(tmp_path / "run" / "metrics.jsonl")) or lines[-1]["step"] < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in stderr
    assert "the stage `train` did not finish" in stderr
    assert "Traceback" not in stderr
    assert stages(stdout) == ["train"]
    stdout, _ = run(automodel, *words, "step_scheduler.max_steps=20", long[1])
    assert "resuming from run/step_" in stdout
    assert stages(stdout) == ["train", "validate", "export", "register"]


def test_a_mistake_in_a_later_stage_is_told_before_the_first(automodel, words, tmp_path):
    wrong = (
        *("checkpoint_management.export_config.formats=[safetensor]", "model_registry.backend=mlflo"),
        "deployment.serving_config.framework=vlm",
    )
    told = automodel(*words, *wrong, expect=2).stderr
    assert "did you mean `safetensors`?" in told
    assert "did you mean `mlflow`?" in told
    assert "did you mean `vllm`?" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoint_management.checkpoint_config.enabled=false", "there would be nothing to validate"),
        ("checkpoint_management.export_config={optimization_level: O0, max_shard_size: 5GB}", "O0 writes one file"),
        ("deployment.serving_config={framework: vllm, tensor_parallel_size: 64}", "vLLM is not installed"),
    ],
)
def test_what_hinders_a_later_stage_is_found_before_training(
    automodel, words, tmp_path, monkeypatch, override, message
):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert message in automodel(*words, override, expect=2).stderr
    assert not (tmp_path / "run").exists()


def test_a_recipes_file_may_not_name_a_program(automodel, words, tmp_path):
    (tmp_path / "serve.yaml").write_text("deployment: {serving_config: {framework: vllm, python: /bin/true}}\n")
    told = automodel(*words, "-c", "serve.yaml", expect=2).stderr
    assert "serve.yaml:1:" in told and "names a program to run, which a recipe's file may not" in told


@pytest.mark.slow
def test_the_pipeline_ends_with_an_answer_over_http(automodel, words, tmp_path):
    """The real `transformers serve`, on the tiny model."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "serve.yaml").write_text(DEPLOYMENT.replace("PORT", str(port)))
    stdout, _ = run(automodel, *words, "-c", "serve.yaml", "--check")
    assert stages(stdout) == ["train", "validate", "export", "register", "deploy"]
    assert re.search(r"ready after \d+ s: http://127.0.0.1:\d+/v1", stdout)
    assert "answered in" in stdout
