"""Models that are made without values and filled afterwards are those that are loaded whole."""

import json

import pytest
import torch
from automodel import InputError
from automodel.parallel.weights import give_memory, parameter_slots
from automodel_models_llm.causal_lm import from_config, from_pretrained

CPU = torch.device("cpu")
MODELS = ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral"]


def source(model_type, tokenizer):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    settings = gpt2 if model_type == "gpt2" else {**small, **heads}
    return from_config({"model_type": model_type, **settings}, tokenizer=tokenizer)


def loaded_whole(source):
    torch.manual_seed(1)
    return source.load_module(CPU)


def filled(source):
    module = source.empty_module(CPU)
    assert all(parameter.is_meta for parameter in module.parameters())
    slots = parameter_slots(module)
    give_memory(module, CPU)
    torch.manual_seed(1)
    source.load_weights(module, {name: getattr(owner, key) for name, (owner, key) in slots.items()})
    return module


def tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_equal(one, other):
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    ids = torch.arange(12)[None]
    assert torch.equal(one.eval()(input_ids=ids).logits, other.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("model_type", MODELS)
def test_random_weights_are_the_same_with_and_without_meta(smollm_tokenizer, model_type):
    one = source(model_type, smollm_tokenizer.name_or_path)
    assert_equal(filled(one), loaded_whole(one))


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_directory_is_read_in_parts_as_transformers_reads_it(smollm_tokenizer, tmp_path, model_type, dtype):
    loaded_whole(source(model_type, smollm_tokenizer.name_or_path)).save_pretrained(tmp_path)
    smollm_tokenizer.save_pretrained(tmp_path)
    one = from_pretrained(str(tmp_path), torch_dtype=dtype)
    module = filled(one)
    assert module.dtype == getattr(torch, dtype)
    assert_equal(module, loaded_whole(one))


def test_generation_settings_come_along(smollm_tokenizer, tmp_path):
    module = loaded_whole(source("llama", smollm_tokenizer.name_or_path))
    module.generation_config.update(eos_token_id=[2, 0], do_sample=True, temperature=0.7)
    module.save_pretrained(tmp_path)
    smollm_tokenizer.save_pretrained(tmp_path)
    empty = from_pretrained(str(tmp_path)).empty_module(CPU)
    assert empty.generation_config.eos_token_id == [2, 0]
    assert empty.generation_config.temperature == 0.7


def test_a_quantised_checkpoint_is_not_read_in_parts(smollm_tokenizer, tmp_path):
    loaded_whole(source("llama", smollm_tokenizer.name_or_path)).save_pretrained(tmp_path)
    smollm_tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is loaded whole and cannot be sharded"):
        from_pretrained(str(tmp_path)).empty_module(CPU)
