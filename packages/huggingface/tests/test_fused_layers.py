"""Fused layers give the results and gradients of transformers' own, and keep less for the backward pass."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from automodel_huggingface.fused_layers import fuse_layers
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
IDS_BL = torch.arange(2 * 11).reshape(2, 11)


def plain_and_fused(model_type, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **settings)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).train()
    for parameter in plain.parameters():  # weights of norms are all 1 at first, and hide what is left out
        nn.init.normal_(parameter, std=0.3)
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    return plain, fused


def fused_names(module):
    return {type(part).__name__ for part in module.modules() if hasattr(part, "plain_forward")}


def outcome(module):
    module.zero_grad()
    loss = module(input_ids=IDS_BL, labels=IDS_BL).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("model_type", "settings", "names"),
    [
        ("llama", {}, {"LlamaRMSNorm", "LlamaMLP"}),
        ("qwen3", {}, {"Qwen3RMSNorm", "Qwen3MLP"}),
        ("mistral", {"hidden_act": "gelu"}, {"MistralRMSNorm", "MistralMLP"}),
        ("granite", {"hidden_act": "linear"}, {"GraniteRMSNorm", "GraniteMLP"}),  # which returns what it is given
        ("gemma", {}, {"GemmaMLP"}),  # its norms scale by 1 + weight
    ],
)
def test_results_and_gradients_are_those_of_the_model(model_type, settings, names):
    plain, fused = plain_and_fused(model_type, **settings)
    assert fused_names(fused) == names
    (loss, gradients), (fused_loss, fused_gradients) = outcome(plain), outcome(fused)
    torch.testing.assert_close(fused_loss, loss, rtol=1e-6, atol=0)
    assert fused_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_layers_of_another_kind_are_left_alone():
    for model_type in ("gpt_neox", "phi3"):
        assert fused_names(plain_and_fused(model_type)[1]) - {"Phi3RMSNorm"} == set()


def test_in_bfloat16_the_result_is_the_same_and_gradients_are_as_near_to_float32s():
    plain, fused = plain_and_fused("llama", torch.bfloat16)
    (loss, gradients), (fused_loss, fused_gradients) = outcome(plain), outcome(fused)
    assert torch.equal(fused_loss, loss)
    _, exact = outcome(plain.float())

    def error(given):
        return sum(float((given[name].float() - value).norm() / value.norm()) for name, value in exact.items())

    assert error(fused_gradients) < 1.05 * error(gradients)


def test_weights_wider_than_their_input_widen_the_output():
    plain, fused = plain_and_fused("llama")
    norm, fused_norm = plain.model.norm, fused.model.norm
    hidden = torch.randn(3, 32, dtype=torch.bfloat16)
    assert fused_norm(hidden).dtype == norm(hidden).dtype == torch.float32
    assert torch.equal(fused_norm(hidden), norm(hidden))


@pytest.mark.parametrize("trains", ["all", "query"])
def test_less_is_kept_for_the_backward_pass(trains):
    def kept_bytes(module):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trains == "all" or "q_proj" in name)
        weights = {p.data_ptr() for p in module.parameters()}
        storages = {}

        def pack(tensor):
            if tensor.data_ptr() not in weights:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            module.model(input_ids=torch.arange(97).repeat(1, 4))
        return sum(size for size, _ in storages.values())

    plain, fused = plain_and_fused("llama")
    assert kept_bytes(fused) < 0.9 * kept_bytes(plain)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles_are_the_models_own(again):
    plain, fused = plain_and_fused("llama")
    other = again(fused)
    assert not fused_names(other)
    assert torch.equal(outcome(other)[0], outcome(plain)[0])


@pytest.mark.parametrize("activation", [nn.PReLU(), torch.nn.functional.silu])
def test_activations_with_weights_and_bare_functions_are_computed_as_ever(activation):
    plain, fused = (pair.model.layers[0].mlp for pair in plain_and_fused("llama"))
    hidden = torch.randn(3, 32)
    for mlp in (plain, fused):
        del mlp.act_fn
        mlp.act_fn = activation
    torch.testing.assert_close(fused(hidden), plain(hidden), rtol=0, atol=0)
    fused(hidden).sum().backward()
    assert all(weight.grad is not None for weight in fused.parameters())


def test_under_autocast_results_are_the_models_and_gradients_near():
    plain, fused = plain_and_fused("llama")
    with torch.autocast("cpu", torch.bfloat16):
        (loss, gradients), (fused_loss, fused_gradients) = outcome(plain), outcome(fused)
    torch.testing.assert_close(fused_loss, loss, rtol=1e-3, atol=0)
    for name, gradient in gradients.items():
        assert fused_gradients[name].dtype == gradient.dtype
        assert float((fused_gradients[name] - gradient).norm()) < 0.05 * float(gradient.norm()), name


def test_a_fused_model_is_gone_when_nobody_has_it():
    _, fused = plain_and_fused("llama")
    weight = weakref.ref(fused.model.layers[0].mlp.up_proj.weight)
    gc.collect()
    gc.disable()
    try:
        del fused
        assert weight() is None
    finally:
        gc.enable()


def test_compiled_layers_are_compiled_from_the_models_own_code():
    plain, fused = plain_and_fused("llama")
    hidden = torch.randn(3, 32)
    for name in ("mlp", "input_layernorm"):
        compiled = torch.compile(getattr(fused.model.layers[0], name), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(hidden), getattr(plain.model.layers[0], name)(hidden))
