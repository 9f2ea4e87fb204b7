"""A layer and its adapter in one operation give what peft's layer gives, and what is not plain is left to peft."""

import peft
import pytest
import torch
from automodel_peft_lora import low_rank
from automodel_peft_lora.lora import LoRA
from torch import nn


@pytest.fixture
def calls(monkeypatch):
    """How often the one operation was used."""
    made = []
    apply = low_rank._LowRank.apply
    monkeypatch.setattr(low_rank._LowRank, "apply", lambda *args: made.append(1) or apply(*args))
    return made


def outcome(module, ids):
    module.zero_grad()
    torch.manual_seed(2)  # of dropout
    loss = module(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def pair(tiny_llama, dtype=torch.float32, **settings):
    """Our model and peft's, with the same weights, none of them zero."""
    ours = LoRA(**settings).apply(tiny_llama(dtype))
    config = peft.LoraConfig(
        r=ours.peft_config["default"].r,
        lora_alpha=32,
        target_modules=sorted(ours.peft_config["default"].target_modules),
        bias=settings.get("bias", "none"),
        lora_dropout=settings.get("dropout", 0.0),
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(tiny_llama(dtype), config)
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    return ours.train(), theirs.train()


IDS_BL = torch.arange(2 * 11).reshape(2, 11)


@pytest.mark.parametrize(
    "settings", [{}, {"r": 4, "target_modules": ["q_proj", "down_proj"]}, {"bias": "all"}, {"dropout": 0.3}]
)
def test_results_and_gradients_are_pefts(tiny_llama, calls, settings):
    ours, theirs = pair(tiny_llama, **settings)
    (loss, gradients), (their_loss, theirs_gradients) = outcome(ours, IDS_BL), outcome(theirs, IDS_BL)
    assert calls
    torch.testing.assert_close(loss, their_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == theirs_gradients.keys()
    for name, gradient in theirs_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_biases_that_train_get_their_gradients(calls):
    base = nn.Sequential(nn.Linear(6, 5, bias=True))
    layer = LoRA(target_modules=["0"], r=2, bias="all").apply(base)
    layer(torch.randn(4, 6)).sum().backward()
    assert calls
    assert layer.base_model.model[0].base_layer.bias.grad.tolist() == [4.0] * 5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_on_a_bfloat16_base_the_adapter_is_in_float32_as_in_peft(tiny_llama, calls, dropout):
    ours, theirs = pair(tiny_llama, torch.bfloat16, dropout=dropout)
    (loss, gradients), (their_loss, theirs_gradients) = outcome(ours, IDS_BL), outcome(theirs, IDS_BL)
    assert calls
    assert torch.equal(loss, their_loss)
    for name, gradient in theirs_gradients.items():
        assert gradients[name].dtype == torch.float32
        assert float((gradients[name] - gradient).norm()) < 0.05 * float(gradient.norm())


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"use_dora": True}, None),
        ({}, lambda model: model.base_model.disable_adapter_layers()),
        ({}, lambda model: model.base_model.merge_adapter()),
        ({}, lambda model: [one.register_forward_hook(print) for one in model.modules() if type(one) is nn.Linear]),
    ],
)
def test_what_is_not_plain_is_left_to_peft(tiny_llama, calls, settings, change):
    model = LoRA(**settings).apply(tiny_llama()).train()
    if change is not None:
        change(model)
    model(input_ids=IDS_BL)
    assert not calls


def test_under_autocast_peft_computes(tiny_llama, calls):
    model = LoRA().apply(tiny_llama()).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS_BL, labels=IDS_BL).loss.backward()
    assert not calls
