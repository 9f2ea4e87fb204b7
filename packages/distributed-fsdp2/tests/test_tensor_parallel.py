"""Which models can be shared out, and what becomes of their parameters, in a world of which only one process exists."""

import pytest
import torch
import torch.distributed as dist
from automodel import InputError
from automodel.plan.estimate import fake_processes
from automodel_distributed_fsdp2 import tensor_parallel
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers import CONFIG_MAPPING, AutoModelForCausalLM


def model(model_type, **settings):
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**small, **heads, **settings}))


@pytest.fixture
def mesh():
    with fake_processes(2):
        assert dist.get_world_size() == 2
        yield init_device_mesh("cpu", (2,))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_every_parameter_of_the_usual_models_lies_on_the_mesh(mesh, model_type):
    module = model(model_type)
    before = {name: value.shape for name, value in module.named_parameters()}
    tensor_parallel.apply(module, mesh, sequence_parallel=False)
    after = dict(module.named_parameters())
    assert {name: value.shape for name, value in after.items()} == before
    assert all(isinstance(value, DTensor) for value in after.values())
    shared = [name for name, value in after.items() if value.placements != (Replicate(),)]
    assert len(shared) >= 2 * 4


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_what_is_frozen_stays_frozen(mesh, sequence_parallel):
    adapted = get_peft_model(model("qwen3"), LoraConfig(target_modules="all-linear"))
    trains = {name for name, value in adapted.named_parameters() if value.requires_grad}
    tensor_parallel.apply(adapted.get_base_model(), mesh, sequence_parallel)
    assert {name for name, value in adapted.named_parameters() if value.requires_grad} == trains


def test_adapters_are_shared_on_the_side_on_which_their_base_is(mesh):
    adapted = get_peft_model(model("llama"), LoraConfig(target_modules=["q_proj", "o_proj"]))
    tensor_parallel.apply(adapted.get_base_model(), mesh, sequence_parallel=False)
    attention = adapted.get_base_model().model.layers[0].self_attn
    placements = [
        part["default"].weight.placements
        for module in (attention.q_proj, attention.o_proj)
        for part in (module.lora_A, module.lora_B)
    ]
    assert placements == [(Replicate(),), (Shard(0),), (Shard(1),), (Replicate(),)]


def test_tied_embeddings_stay_one_parameter(mesh):
    module = model("llama", tie_word_embeddings=True)
    tensor_parallel.apply(module, mesh, sequence_parallel=False)
    assert module.lm_head.weight is module.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("llama", {"num_key_value_heads": 1}, "tp_size 2 does not divide the model's num_key_value_heads: 1"),
        ("mixtral", {}, "moe_tp_experts, packed_colwise, which is not supported here"),
        ("gpt2", {}, "transformers has no tensor-parallel plan for GPT2LMHeadModel"),
    ],
)
def test_a_model_that_cannot_be_shared_out_is_refused(mesh, model_type, settings, message):
    with pytest.raises(InputError, match=message):
        tensor_parallel.apply(model(model_type, **settings), mesh, sequence_parallel=False)


@pytest.mark.parametrize("model_type", ["gemma2", "phi"])
def test_sequence_parallelism_of_models_that_are_not_built_like_llama_is_refused(mesh, model_type):
    with torch.device("meta"):
        module = model(model_type)
    with pytest.raises(InputError, match="sequence_parallel is for models built like Llama"):
        tensor_parallel.apply(module, mesh, sequence_parallel=True)
