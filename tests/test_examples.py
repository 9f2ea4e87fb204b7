"""The recipes of `examples/` run: ours on the real pretrained model, our users' unchanged."""

import pytest
import torch
import yaml
from automodel.checkpoint import manifest
from automodel_models_llm.causal_lm import from_config
from support import ROOT, TINY_MODEL, metrics

EXAMPLES = ROOT / "examples"


@pytest.fixture
def model_directory(tmp_path):
    """A small model and its tokenizer as a Hugging Face directory."""
    torch.manual_seed(0)
    source = from_config(
        **{key: value for key, value in yaml.safe_load(TINY_MODEL)["model"].items() if key != "_target_"}
    )
    source.load_module(torch.device("cpu")).save_pretrained(tmp_path / "model")
    source.load_processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "name",
    ["production_training_pipeline", pytest.param("production_training_pipeline_no_peft", marks=pytest.mark.slow)],
)
def test_the_production_recipes_run_unchanged(automodel, model_directory, data, tmp_path, monkeypatch, name):
    for variable, value in {"DATA_PATH": data, "MAX_STEPS": 3, "CKPT_EVERY": 2, "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(variable, str(value))
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    process = automodel.start(
        *("train", "-c", EXAMPLES / f"{name}.yaml"), "--model.pretrained_model_name_or_path", model_directory
    )
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    run = tmp_path / "checkpoints"
    assert sorted(path.name for path in run.iterdir() if path.name.startswith("step_")) == ["step_2", "step_3"]
    assert manifest.problems(run / "step_3") == []
    assert list(metrics(run)) == [1, 2, 3]
    adapter = (run / "step_3" / "model" / "adapter_model.safetensors").exists()
    assert adapter == (name == "production_training_pipeline")
    assert any((run / "wandb").glob("offline-run-*/*.wandb"))
    for fallback in ("flash_attention_2", "liger", "pin_memory", "wandb"):
        assert sum(line.startswith("note: ") and fallback in line for line in stderr.splitlines()) == 1, stderr


@pytest.mark.parametrize(
    "name", ["distributed_training", pytest.param("distributed_training_no_peft", marks=pytest.mark.slow)]
)
def test_the_distributed_recipes_run_in_four_processes_given_a_model_and_data(
    automodel, model_directory, data, tmp_path, name
):
    recipe = EXAMPLES / f"{name}.yaml"
    assert "the section `dataset` is missing" in automodel("finetune", "llm", "-c", recipe, expect=2).stderr
    (tmp_path / "data.yaml").write_text(f"dataset: {{_target_: text-instruction, data_path: {data}/train.jsonl}}\n")
    process = automodel.start(
        *("finetune", "llm", "-c", recipe, "-c", "data.yaml", "step_scheduler.max_steps=2", "--nproc-per-node", 4),
        *("--model.pretrained_model_name_or_path", model_directory),
    )
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    model = tmp_path / "checkpoints" / "step_2" / "model"
    adapted = (model / "adapter_model.safetensors").exists()
    assert adapted == (name == "distributed_training")
    assert adapted or len(list(model.glob("model-*-of-00004.safetensors"))) == 4


def test_the_quick_start_trains_the_real_model(automodel, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_PATH", str(EXAMPLES / "data" / "countries"))
    automodel(
        *("train", "-c", EXAMPLES / "quickstart.yaml", "step_scheduler.max_steps=8", "dataloader.batch_size=4"),
        *("validation_dataset.limit_dataset_samples=8", "checkpoint.checkpoint_dir=run"),
    )
    validations = metrics(tmp_path / "run", "val_loss")
    assert validations[8] < validations[0] - 3


@pytest.mark.slow
def test_the_quick_start_raises_the_exact_match_on_held_out_rows(automodel, tmp_path, monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setenv("DATA_PATH", str(EXAMPLES / "data" / "countries"))
    automodel("train", "-c", EXAMPLES / "quickstart.yaml", "checkpoint.checkpoint_dir=run")
    exact = metrics(tmp_path / "run", "val_exact_match")
    assert exact[0] <= 0.02
    assert exact[max(exact)] >= 0.18
