"""A merged model says what base and adapter say together, and a torn adapter is never merged."""

import json

import pytest
import torch
from automodel import InputError
from automodel.cli.main import main
from automodel_peft_lora.lora import LoRA
from automodel_peft_lora.merging import merge_checkpoint
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


@pytest.fixture
def words():
    """A tokenizer of numbers."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(97)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0", pad_token="1", eos_token="1")


@pytest.fixture
def base(llama_directory, words):
    words.save_pretrained(llama_directory)
    return llama_directory


@pytest.fixture
def make_adapter(base, tmp_path, trained):
    def make(dtype="float32", **settings):
        module = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        module = trained(LoRA(**settings).apply(module))
        module.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


def adapted(base, adapter, dtype="float32"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)


def merged(directory):
    return AutoModelForCausalLM.from_pretrained(directory)


SETTINGS = [
    {},
    {"use_dora": True, "target_modules": ["q_proj"]},
    {"use_rslora": True},
    {"init": "orthogonal"},
    {"bias": "all"},
    {"target_modules": ["lm_head", "q_proj"]},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_logits_are_those_of_base_and_adapter(base, make_adapter, tmp_path, logits, settings):
    adapter = make_adapter(**settings)
    merge_checkpoint(adapter, tmp_path / "merged")
    expected = logits(adapted(base, adapter))
    assert not torch.allclose(expected, logits(merged(base)), atol=1e-2)
    torch.testing.assert_close(logits(merged(tmp_path / "merged")), expected, atol=2e-6, rtol=1e-5)


def test_the_result_is_an_ordinary_directory(base, make_adapter, tmp_path):
    merge_checkpoint(make_adapter(), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any("adapter" in name for name in names)
    assert len({path.stat().st_mode for path in (tmp_path / "merged").iterdir()}) == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("5 7")["input_ids"] == [5, 7]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_tokenizer_that_was_saved_with_the_adapter_goes_along(make_adapter, tmp_path, words):
    adapter = make_adapter()
    words.chat_template = "hello"
    words.save_pretrained(adapter)
    merge_checkpoint(adapter, tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == "hello"


def test_a_bfloat16_base_is_merged_in_bfloat16(base, make_adapter, tmp_path, logits, tiny_llama):
    tiny_llama(torch.bfloat16).save_pretrained(base)
    adapter = make_adapter("bfloat16")
    merge_checkpoint(adapter, tmp_path / "merged")
    result = merged(tmp_path / "merged")
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(logits(result), logits(adapted(base, adapter, "bfloat16")), atol=0.05, rtol=0.05)


def test_dtype_widens_before_the_sum_and_narrows_after_it(base, make_adapter, tmp_path, logits):
    adapter = make_adapter()
    merge_checkpoint(adapter, tmp_path / "merged", dtype="bfloat16")
    merge_checkpoint(adapter, tmp_path / "wide")
    narrow, wide = (
        load_file(tmp_path / "merged" / "model.safetensors"),
        load_file(tmp_path / "wide" / "model.safetensors"),
    )
    assert all(torch.equal(narrow[name], wide[name].to(torch.bfloat16)) for name in wide)
    assert merged(tmp_path / "merged").dtype == torch.bfloat16


def test_nothing_is_overwritten(make_adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="not an empty directory"):
        merge_checkpoint(make_adapter(), tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["thesis.txt"]


def test_the_base_can_be_given(base, make_adapter, tmp_path):
    adapter = make_adapter()
    elsewhere = base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="--base says where it lies"):
        merge_checkpoint(adapter, tmp_path / "merged")
    merge_checkpoint(adapter, tmp_path / "merged", base=str(elsewhere))
    assert merged(tmp_path / "merged").num_parameters() == merged(elsewhere).num_parameters()


def test_an_adapter_that_names_no_base_needs_one(make_adapter, tmp_path):
    adapter = make_adapter()
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="names no base model"):
        merge_checkpoint(adapter, tmp_path / "merged")


def drop_one(tensors):
    return dict(list(tensors.items())[1:])


def add_one(tensors):
    return tensors | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(16, 32)}


def reshape_one(tensors):
    name = next(iter(tensors))
    return tensors | {name: torch.zeros(3, 5)}


def spoil_one(tensors):
    name = next(name for name in tensors if "lora_B" in name)
    return tensors | {name: torch.full_like(tensors[name], float("nan"))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, "is missing"),
        (add_one, "has no place in the base model"),
        (reshape_one, r"is \(3, 5\), not"),
        (spoil_one, "cannot be merged"),
    ],
)
def test_a_torn_adapter_is_refused(make_adapter, tmp_path, change, message):
    adapter = make_adapter(target_modules=["q_proj"])
    weights = adapter / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)
    with pytest.raises(InputError, match=message):
        merge_checkpoint(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_cut_file_is_refused(make_adapter, tmp_path):
    adapter = make_adapter()
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged"):
        merge_checkpoint(adapter, tmp_path / "merged")


def test_pickled_adapters_are_not_read(make_adapter, tmp_path):
    adapter = make_adapter()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="pickle runs code"):
        merge_checkpoint(adapter, tmp_path / "merged")


RECIPE = """\
model:
  _target_: causal-lm
  pretrained_model_name_or_path: {base}
dataset:
  _target_: plain-text
  data_path: {data}
dataloader: {{batch_size: 2}}
step_scheduler: {{max_steps: 3}}
optimizer: {{lr: 1e-2}}
checkpoint: {{checkpoint_dir: {run}}}
"""
PEFT = "peft: {_target_: lora, r: 4}\n"


@pytest.fixture
def run(base, tmp_path):
    """Trains by `automodel train` and gives the directory of the run."""
    pytest.importorskip("automodel_models_llm", reason="the recipe's model and data set are its providers")

    def train(peft=PEFT):
        rows = [{"text": " ".join(str((start * step) % 90 + 2) for step in range(20))} for start in range(1, 9)]
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(base=base, data=data, run=tmp_path / "run") + peft)
        assert main(["train", "-c", str(recipe)]) == 0
        return tmp_path / "run"

    return train


def test_a_checkpoint_is_merged_into_its_recipes_model(base, run, tmp_path, logits, capsys):
    directory = run()
    expected = None
    for number, path in enumerate((directory, directory / "step_3", directory / "step_3" / "model")):
        output = tmp_path / f"merged_{number}"
        assert main(["merge", "--checkpoint", str(path), "--output", str(output)]) == 0
        assert f"merged {directory / 'step_3' / 'model'} into" in capsys.readouterr().out
        expected = logits(adapted(base, directory / "step_3" / "model")) if expected is None else expected
        torch.testing.assert_close(logits(merged(output)), expected, atol=2e-6, rtol=1e-5)


def test_a_damaged_checkpoint_is_refused(run, tmp_path, capsys):
    directory = run()
    weights = directory / "step_3" / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["merge", "--checkpoint", str(directory / "step_3"), "--output", str(tmp_path / "merged")]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_another_base_than_the_trained_one_is_refused(base, run, tmp_path, capsys, tiny_llama):
    directory = run()
    other = tiny_llama()
    with torch.no_grad():
        other.model.norm.weight += 1
    other.save_pretrained(base)
    assert main(["merge", "--checkpoint", str(directory), "--output", str(tmp_path / "merged")]) == 2
    assert "is not the model that" in capsys.readouterr().err
    insisted = ["merge", "--checkpoint", str(directory), "--output", str(tmp_path / "merged"), "--base", str(base)]
    assert main(insisted) == 0
    assert "note: " in capsys.readouterr().err


def test_a_run_without_adapters_has_nothing_to_merge(run, tmp_path):
    with pytest.raises(InputError, match="is the whole model already"):
        merge_checkpoint(run(peft=""), tmp_path / "merged")


def test_a_place_without_an_adapter_is_told(tmp_path):
    with pytest.raises(InputError, match="is no directory"):
        merge_checkpoint(tmp_path / "nothing", tmp_path / "merged")
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        merge_checkpoint(tmp_path, tmp_path / "merged")
