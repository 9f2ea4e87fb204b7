"""What a run saves is loaded by transformers and peft as it is, and says what the trained model says."""

import pytest
import torch
from automodel.checkpoint.checkpointer import Checkpointer
from automodel.checkpoint.state import load_model
from automodel.plugins import installed
from automodel.recipe import load_recipe
from automodel.training import linear
from automodel.training.build import build_data, build_parts
from peft import PeftModel
from support import TINY_MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(autouse=True)
def torchs_own_products(monkeypatch):
    """Both compute by the same library, so that logits can be equal to the last bit."""
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)


LORA = "\npeft:\n  _target_: lora\n  target_modules: all-linear\n  r: 4\n"


def trained(recipe, checkpoint):
    """The trained model as AutoModel itself has it: the recipe's model with the checkpoint's state."""
    checked, cpu = load_recipe([recipe]), torch.device("cpu")
    data = build_data(checked, cpu)
    parts = build_parts(checked, data, Checkpointer(checkpoint_dir="unused"), installed().manager, cpu)
    load_model(checkpoint / "state", parts.module, parts.fingerprint)
    return parts.module.eval()


def logits(model, tokenizer):
    batch = tokenizer("The alpha-3 code of Kenya is", return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits


def answer(model, tokenizer):
    batch = tokenizer("The alpha-3 code of Kenya is", return_tensors="pt")
    tokens = model.generate(**batch, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :])


def test_a_full_model_loads_with_transformers(automodel, recipe, tmp_path):
    automodel("train", "-c", recipe)
    checkpoint = tmp_path / "run" / "step_6"
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint / "model")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "model")
    assert tokenizer.chat_template
    ours = trained(recipe, checkpoint)
    assert torch.equal(logits(loaded, tokenizer), logits(ours, tokenizer))
    torch.manual_seed(7)
    untrained = AutoModelForCausalLM.from_config(loaded.config)
    assert answer(loaded, tokenizer) != answer(untrained, tokenizer)


def test_an_adapter_loads_with_peft_on_its_base(automodel, recipe, tmp_path):
    import yaml
    from automodel_models_llm.causal_lm import from_config

    recipe.write_text(recipe.read_text().replace(TINY_MODEL, TINY_MODEL + LORA))
    automodel("train", "-c", recipe)
    checkpoint = tmp_path / "run" / "step_6"
    files = {path.name for path in (checkpoint / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    torch.manual_seed(7)  # the recipe's seed gives the random base again
    base = from_config(**{k: v for k, v in yaml.safe_load(TINY_MODEL)["model"].items() if k != "_target_"})
    base = base.load_module(torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "model")
    before = logits(base.eval(), tokenizer)
    loaded = PeftModel.from_pretrained(base, checkpoint / "model").eval()
    assert torch.equal(logits(loaded, tokenizer), logits(trained(recipe, checkpoint), tokenizer))
    assert not torch.allclose(logits(loaded, tokenizer), before, atol=1e-3)


@pytest.mark.parametrize("peft", ["", LORA], ids=["full", "lora"])
def test_evaluate_on_a_checkpoint_gives_the_runs_last_validation(automodel, recipe, data, tmp_path, peft):
    import json

    from automodel.checkpoint.manifest import read_manifest

    validation = f"validation_dataset: {{_target_: text-instruction, data_path: {data}/validation.jsonl}}\n"
    recipe.write_text(recipe.read_text().replace(TINY_MODEL, TINY_MODEL + peft + "\n") + validation)
    automodel("train", "-c", recipe)
    found = json.loads(automodel("evaluate", "-c", recipe, "--checkpoint", "run").stdout)
    saved = read_manifest(tmp_path / "run" / "step_6")["metrics"]
    assert found == {name: saved[name] for name in found}
    before = json.loads(automodel("evaluate", "-c", recipe).stdout)
    assert before["val_loss"] > found["val_loss"]


def test_a_model_that_is_loaded_again_is_told_of_documents_by_itself(recipe, tmp_path):
    checked, cpu = load_recipe([recipe], ["model.config.attention_dropout=0.1"]), torch.device("cpu")
    data = build_data(checked, cpu)
    parts = build_parts(checked, data, Checkpointer(checkpoint_dir="unused"), installed().manager, cpu)
    parts.module.save_pretrained(tmp_path / "saved")
    module, _, told = parts.reload(tmp_path / "saved")
    parts.module.train()  # whose dropout differs in what all begin with
    module.eval()
    documents = {
        "input_ids": torch.tensor([[5, 6, 7, 1, 5, 6, 7, 2]]),
        "position_ids": torch.tensor([[0, 1, 2, 3] * 2]),
        "cu_seq_lens_q": torch.tensor([0, 4, 8], dtype=torch.int32),
    }
    assert parts.document_inputs(documents)[1] is None
    assert told(documents)[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 4]
