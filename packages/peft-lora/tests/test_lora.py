"""The adapters are those that peft would make, and the only thing that learns."""

import json
import math
import socket
import subprocess
import sys

import peft
import pytest
import torch
from automodel import InputError
from automodel_peft_lora.lora import LoRA
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel


def trainable(module):
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}),
        (
            {"target_modules": ["q_proj", "v_proj"], "dim": 4, "alpha": 8, "dropout": 0.1},
            {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        ),
        (
            {"target_modules": "*.mlp.*", "r": 2, "use_rslora": True, "init": "gaussian"},
            {
                "r": 2, "lora_alpha": 32, "use_rslora": True, "init_lora_weights": "gaussian",
                "target_modules": ["gate_proj", "up_proj", "down_proj"],
            },
        ),
        (
            {"target_modules": ["q_proj"], "r": 4, "use_dora": True, "bias": "all", "layers_to_transform": 1},
            {
                "r": 4, "lora_alpha": 32, "use_dora": True, "bias": "all", "target_modules": ["q_proj"],
                "layers_to_transform": [1],
            },
        ),
        (
            {"target_modules": ["o_proj"], "r": 4, "init": "orthogonal"},
            {"r": 4, "lora_alpha": 32, "init_lora_weights": "orthogonal", "target_modules": ["o_proj"]},
        ),
    ],
)  # fmt: skip
def test_it_is_the_model_that_peft_makes_by_hand(tiny_llama, trained, logits, ours, theirs):
    # in float64: AdamW makes whole steps out of what float32 rounds in another order where gradients are near 0
    torch.manual_seed(1)
    by_us = LoRA(**ours).apply(tiny_llama(torch.float64))
    config = peft.LoraConfig(task_type="CAUSAL_LM", **theirs)
    torch.manual_seed(1)
    by_hand = peft.get_peft_model(tiny_llama(torch.float64), config)
    # make the random numbers of both start equal: the base model's own weights are drawn in between
    by_hand.load_state_dict(by_us.state_dict())
    assert trainable(by_us).keys() == trainable(by_hand).keys()
    for module in (by_us, by_hand):
        torch.manual_seed(2)
        trained(module)
    torch.testing.assert_close(logits(by_us), logits(by_hand), rtol=1e-9, atol=1e-9)


def test_the_same_seed_gives_the_adapters_that_peft_gives(tiny_llama):
    ours, theirs = tiny_llama(), tiny_llama()
    torch.manual_seed(1)
    ours = LoRA().apply(ours)
    torch.manual_seed(1)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, value in trainable(theirs).items():
        assert torch.equal(value, trainable(ours)[name])


def test_the_number_of_trainable_parameters_is_that_of_the_formula(tiny_llama):
    module = LoRA(target_modules=["q_proj", "k_proj"], r=4).apply(tiny_llama())
    num_layers, hidden, keys = 2, 32, 16
    assert sum(p.numel() for p in trainable(module).values()) == num_layers * 4 * ((hidden + hidden) + (hidden + keys))


def test_an_untrained_adapter_changes_nothing(tiny_llama, logits):
    for lora in (LoRA(), LoRA(lora_A_init="xavier"), LoRA(init="gaussian")):
        assert torch.equal(logits(lora.apply(tiny_llama())), logits(tiny_llama()))


def test_only_adapters_learn(tiny_llama, trained):
    before = {name: value.clone() for name, value in tiny_llama().named_parameters()}
    module = trained(LoRA().apply(tiny_llama()))
    after = dict(module.unload().named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_adapters_are_float32_on_a_bfloat16_base(tiny_llama, trained):
    module = LoRA().apply(tiny_llama(torch.bfloat16))
    assert {p.dtype for p in trainable(module).values()} == {torch.float32}
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}
    trained(module)


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16", "bf16"])
def test_lora_dtype_is_obeyed(tiny_llama, trained, name):
    module = LoRA(lora_dtype=name).apply(tiny_llama(torch.bfloat16))
    assert {p.dtype for p in trainable(module).values()} == {torch.bfloat16}
    trained(module)


def test_modules_to_save_learn_and_stay_tied(tiny_llama, trained, logits, tmp_path, llama_directory):
    base = AutoModelForCausalLM.from_pretrained(llama_directory)
    module = trained(LoRA(target_modules=["q_proj"], modules_to_save=["embed_tokens"]).apply(base))
    assert any("modules_to_save" in name for name in trainable(module))
    module.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_directory), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(module))
    merged = module.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_modules_to_save_that_are_not_there_are_an_error(tiny_llama):
    with pytest.raises(InputError, match="no module is called `lm_haed`; did you mean `lm_head`"):
        LoRA(modules_to_save=["lm_haed"]).apply(tiny_llama())


def test_gpt2_is_adapted_without_a_warning(recwarn):
    module = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16))
    assert LoRA().apply(module).peft_config["default"].fan_in_fan_out
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]


def test_a_second_set_of_adapters_is_refused(tiny_llama):
    with pytest.raises(InputError, match="has adapters already"):
        LoRA().apply(LoRA().apply(tiny_llama()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 8, "dim": 8}, "two names for the rank"),
        ({"r": 0}, "at least 1"),
        ({"dropout": 1.0}, "below 1"),
        ({"alpha": 0}, "above 0"),
        ({"match_all_linear": True, "target_modules": ["q_proj"]}, "contradict"),
        ({"target_modules": []}, "empty"),
        ({"init": "gaussian", "lora_A_init": "xavier"}, "contradict"),
        ({"init": "orthogonal", "r": 3}, "even rank"),
        ({"lora_dtype": "bfloat61"}, "did you mean `bfloat16`"),
    ],
)
def test_wrong_values_are_told_before_a_model_is_touched(arguments, message):
    with pytest.raises(InputError, match=message):
        LoRA(**arguments)


def test_nemos_defaults_have_nemos_scale(tiny_llama):
    config = LoRA(match_all_linear=True, dim=8, alpha=32).apply(tiny_llama()).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 32, 0.0)


def test_what_nemo_does_otherwise_is_told(tiny_llama, capsys):
    LoRA(use_triton=True, dropout=0.1, dropout_position="post").apply(tiny_llama())
    told = capsys.readouterr().err
    assert "use_triton" in told
    assert "dropout_position" in told


def test_xavier_has_the_spread_of_xavier(tiny_llama):
    module = LoRA(lora_A_init="xavier", target_modules=["down_proj"], r=32).apply(tiny_llama())
    drawn = torch.cat([value.flatten() for name, value in trainable(module).items() if "lora_A" in name])
    assert drawn.std().item() == pytest.approx(math.sqrt(2 / (48 + 32)), rel=0.1)


def test_a_model_quantised_to_eight_bits_has_its_norms_raised_to_float32(tiny_llama):
    """bitsandbytes does not run here; transformers marks what it quantised by this attribute, and peft looks at it."""
    base = tiny_llama(torch.bfloat16)
    base.is_loaded_in_8bit = True
    module = LoRA().apply(base)
    assert {p.dtype for name, p in module.named_parameters() if "norm" in name} == {torch.float32}
    assert all("lora_" in name for name in trainable(module))
    assert not module.is_gradient_checkpointing


def test_activation_checkpointing_gives_the_same_gradients(tiny_llama):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        module = LoRA().apply(tiny_llama()).train()
        if checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ids = torch.arange(12)[None]
        module(input_ids=ids, labels=ids).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(module).values()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}, {"init": "orthogonal"}])
def test_a_saved_adapter_loads_on_its_base_by_plain_peft(llama_directory, tmp_path, trained, logits, settings):
    base = AutoModelForCausalLM.from_pretrained(llama_directory)
    module = trained(LoRA(**settings).apply(base))
    module.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(module))


def test_a_given_state_dict_is_what_is_saved(tiny_llama, tmp_path, trained):
    module = LoRA(target_modules=["q_proj"], r=2).apply(tiny_llama())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trained(module)
    module.save_pretrained(tmp_path, state_dict=before)
    saved = peft.utils.load_peft_weights(str(tmp_path))
    assert len(saved) == 4
    assert all(torch.equal(value, before[name.replace(".weight", ".default.weight")]) for name, value in saved.items())


def test_the_config_names_the_base_and_the_task(llama_directory, tmp_path):
    LoRA().apply(AutoModelForCausalLM.from_pretrained(llama_directory)).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama_directory)
    assert config["task_type"] == "CAUSAL_LM"
    assert config["lora_alpha"] == 32
    assert config["target_modules"] == sorted(config["target_modules"])


def test_a_model_from_a_config_names_no_base(tiny_llama, tmp_path):
    LoRA().apply(tiny_llama()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_saving_opens_no_connection(tiny_llama, tmp_path, monkeypatch):
    base = tiny_llama()
    base.name_or_path = "somebody/some-model"
    # the test's environment forbids the Hub; here it is allowed, and whoever asks for the network is noted
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    LoRA().apply(base).save_pretrained(tmp_path)
    assert not asked


def test_discovery_imports_nothing_heavy():
    code = "import sys, automodel_peft_lora.plugin as p; p.peft_providers(); p.cli_commands(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "peft", "transformers"} & set(loaded)
