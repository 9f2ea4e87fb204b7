"""Models: what is loaded, made from a config, falls back, and is saved."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from automodel import InputError, notices
from automodel.recipe.allowed import REMOTE_CODE
from automodel_models_llm.causal_lm import from_config, from_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

CPU = torch.device("cpu")
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture
def make(smollm_tokenizer):
    """A tiny Llama with the words of SmolLM2."""
    place = smollm_tokenizer.name_or_path

    def tiny(**options):
        return from_config(TINY, tokenizer=place, **options)

    return tiny


@pytest.fixture
def directory(make, tmp_path):
    """The tiny model in bfloat16, saved in plain Hugging Face layout."""
    source = make(torch_dtype="bfloat16")
    source.load_module(CPU).save_pretrained(tmp_path / "tiny")
    source.load_processor().save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_random_weights_come_from_the_seed(make):
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(make().load_module(CPU))
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_a_config_takes_vocabulary_and_length_from_the_tokenizer(make):
    source = make()
    tokenizer, module = source.load_processor(), source.load_module(CPU)
    assert module.config.vocab_size == len(tokenizer)
    assert module.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == 128
    assert (module.dtype, module.config.use_cache) == (torch.float32, True)
    assert source.name == "random llama"


def test_an_unknown_model_type_is_told(smollm_tokenizer):
    source = from_config({"model_type": "lama"}, tokenizer=smollm_tokenizer.name_or_path)
    with pytest.raises(InputError, match="knows no model_type lama; did you mean"):
        source.load_module(CPU)


def test_settings_that_contradict_each_other_are_told(smollm_tokenizer):
    source = from_config({**TINY, "num_attention_heads": 5}, tokenizer=smollm_tokenizer.name_or_path)
    with pytest.raises(InputError, match=r"the config of random llama is not valid: .*hidden size \(32\)"):
        source.load_module(CPU)


def test_auto_is_the_data_type_of_the_checkpoint(directory):
    assert from_pretrained(directory).load_module(CPU).dtype == torch.bfloat16
    assert from_pretrained(directory, torch_dtype="float32").load_module(CPU).dtype == torch.float32
    assert from_config(directory).load_module(CPU).dtype == torch.float32


def test_model_and_tokenizer_are_saved_in_plain_layout(directory, tmp_path):
    source = from_pretrained(directory)
    tokenizer, module = source.load_processor(), source.load_module(CPU)
    assert tokenizer.model_max_length == 128
    state = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    module.save_pretrained(tmp_path / "saved", state_dict=state)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.model.norm.weight, state["model.norm.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_attention_that_cannot_run_falls_back_with_a_note(name, directory, capsys):
    source = from_pretrained(directory, attn_implementation=name)
    assert source.load_module(CPU).config._attn_implementation == "sdpa_documents"
    note = f"note: attn_implementation: {name} is not usable here (it needs an accelerator and this run is on the CPU)"
    assert capsys.readouterr().err.count(note) == 1
    with notices.strictness(True), pytest.raises(InputError, match="sdpa is used instead"):
        source.load_module(CPU)


def test_attention_that_can_run_is_taken(directory, capsys):
    assert (
        from_pretrained(directory, attn_implementation="eager").load_module(CPU).config._attn_implementation == "eager"
    )
    assert from_pretrained(directory).load_module(CPU).config._attn_implementation == "sdpa_documents"
    assert capsys.readouterr().err == ""


def test_liger_without_accelerator_leaves_plain_kernels_and_a_note(directory, capsys):
    from_pretrained(directory, use_liger_kernel=True).load_module(CPU)
    assert "use_liger_kernel: true is not usable here (Liger needs an accelerator" in capsys.readouterr().err


def test_a_tokenizer_without_pad_token_gets_one(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(directory)
    loaded = from_pretrained(directory).load_processor()
    assert loaded.pad_token == loaded.eos_token


def test_a_tokenizer_is_saved_as_the_checkpoint_has_it(directory, tmp_path):
    config = Path(directory) / "tokenizer_config.json"
    before = {**json.loads(config.read_text()), "padding_side": "left", "model_max_length": 77}
    config.write_text(json.dumps(before))
    loaded = from_pretrained(directory).load_processor()
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 77)
    loaded.save_pretrained(tmp_path / "again")
    after = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert {name: after[name] for name in before} == before


def test_a_tokenizer_without_length_gets_the_number_of_positions(directory):
    config = Path(directory) / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["model_max_length"]
    config.write_text(json.dumps(settings))
    assert from_pretrained(directory).load_processor().model_max_length == 128


def test_float16_is_told_to_have_no_loss_scaling(directory, make, tmp_path, capsys):
    note = "note: the model is in float16, for which there is no loss scaling here"
    from_pretrained(directory).load_module(CPU)
    assert note not in capsys.readouterr().err
    module = from_pretrained(directory, torch_dtype="fp16").load_module(CPU)
    assert capsys.readouterr().err.count(note) == 1
    module.save_pretrained(tmp_path / "half")
    with notices.strictness(True):
        for source in (from_pretrained(str(tmp_path / "half")), make(dtype="float16")):
            with pytest.raises(InputError, match="bfloat16 is safer"):
                source.load_module(CPU)


def test_an_sdpa_patching_that_is_switched_off_is_told_to_have_no_effect(directory, capsys):
    from_pretrained(directory, use_sdpa_patching=True)
    assert capsys.readouterr().err == ""
    from_pretrained(directory, use_sdpa_patching=False)
    assert "note: use_sdpa_patching: false has no effect here" in capsys.readouterr().err


@pytest.mark.parametrize("provider", [from_pretrained, from_config])
def test_remote_code_is_documented_with_the_flag_it_needs(provider):
    assert f"--allow-target {REMOTE_CODE}" in inspect.getdoc(provider)
    assert f"--allow-target {REMOTE_CODE}" in (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
