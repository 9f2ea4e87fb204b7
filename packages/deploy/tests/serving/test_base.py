"""The base of an adapter, where servers cannot read it, is written once; base and adapter are the trained model."""

from pathlib import Path

import pytest
import torch
from automodel.checkpoint.trained import trained_model
from automodel.recipe import load_recipe
from automodel_deploy.served import exports_of, served_model
from peft import PeftModel
from support import COUNTRIES, TINY_MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

TRAINING = f"""
peft:
  _target_: lora
  target_modules: [q_proj, v_proj]
  r: 4
dataset:
  _target_: text-instruction
  data_path: {COUNTRIES}/train.jsonl
  limit_dataset_samples: 8
dataloader:
  batch_size: 2
step_scheduler:
  max_steps: 2
optimizer:
  lr: 1e-1
checkpoint:
  checkpoint_dir: run
deployment:
  serving_config:
    framework: vllm
"""


@pytest.fixture
def trained(automodel, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TINY_MODEL + TRAINING, encoding="utf-8")
    automodel("train", "-c", recipe)
    return load_recipe([recipe])


def test_base_and_adapter_are_the_trained_model(trained, tmp_path):
    model = served_model(trained, None)
    base = AutoModelForCausalLM.from_pretrained(model.location)
    served = PeftModel.from_pretrained(base, str(model.adapter.directory)).eval()
    tokens_BL = AutoTokenizer.from_pretrained(model.location)("What is the code?", return_tensors="pt").input_ids
    module, _ = trained_model(tmp_path / "run" / "step_2")
    with torch.no_grad():
        torch.testing.assert_close(served(tokens_BL).logits, module(tokens_BL).logits, rtol=0, atol=1e-5)
        with served.disable_adapter():
            assert (served(tokens_BL).logits - module(tokens_BL).logits).abs().max() > 1e-3

    written = [path.stat().st_mtime_ns for path in sorted((tmp_path / "run").glob("base_*/*"))]
    assert written
    assert served_model(trained, None) == model
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "run").glob("base_*/*"))] == written
    assert not list((tmp_path / "run").glob(".base*"))


def test_a_recipe_that_exports_serves_and_registers_the_export(trained, tmp_path):
    pytest.importorskip("automodel_deploy.export")
    section = "checkpoint_management.export_config"
    recipe = load_recipe(
        [tmp_path / "recipe.yaml"], {f"{section}.formats": ["pytorch", "safetensors"], f"{section}.output_dir": "out"}
    )
    checkpoint = tmp_path / "run" / "step_2"
    assert exports_of(recipe, checkpoint) == []
    model = served_model(recipe, None)
    assert model.name == "run"
    assert model.adapter is None
    assert model.location == str(tmp_path / "out" / "step_2-O1" / "safetensors")
    assert served_model(recipe, Path(model.location)).name == "run"  # named directly, too
    assert [path.name for path in exports_of(recipe, checkpoint)] == ["pytorch", "safetensors"]
    assert exports_of(trained, checkpoint) == []  # a recipe without the section has none
