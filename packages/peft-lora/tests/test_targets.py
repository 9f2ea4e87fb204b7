"""Which modules an entry of `target_modules` means."""

import re

import pytest
from automodel import InputError
from automodel_peft_lora.targets import choose_modules, linear_modules, matches, shortest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def last_parts(names):
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("q_proj", "model.layers.0.self_attn.xq_proj", False),
        ("self_attn.q_proj", "model.layers.0.self_attn.q_proj", True),
        ("layers.0", "model.layers.0.self_attn.q_proj", False),
        ("*.q_proj", "model.layers.0.self_attn.q_proj", True),
        ("*proj", "model.layers.0.self_attn.q_proj", True),
        ("q_*", "model.layers.0.self_attn.q_proj", True),
        ("model.layers.1*.q_proj", "model.layers.10.self_attn.q_proj", True),
        ("model.layers.1.*.q_proj", "model.layers.10.self_attn.q_proj", False),
        (r".*\.(q|v)_proj", "model.layers.0.self_attn.q_proj", True),
        (r"(q|v)_proj", "model.layers.0.self_attn.q_proj", False),
        (".*q_proj", "model.layers.0.self_attn.q_proj", True),
    ],
)
def test_an_entry_is_a_name_a_wildcard_or_a_regular_expression(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_all_linear_means_every_linear_module_but_the_head(tiny_llama):
    chosen = choose_modules(tiny_llama(tie=False), ["all-linear"])
    assert len(chosen) == 2 * len(PROJECTIONS)
    assert last_parts(chosen) == set(PROJECTIONS)


def test_the_head_and_embeddings_can_be_named(tiny_llama):
    assert choose_modules(tiny_llama(tie=False), ["lm_head", "embed_tokens"]) == ["model.embed_tokens", "lm_head"]


def test_linear_modules_of_gpt2_are_found():
    module = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16))
    assert last_parts(choose_modules(module, ["all-linear"])) == {"c_attn", "c_proj", "c_fc"}


def test_projections_that_torch_never_calls_are_left_alone():
    module = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert list(linear_modules(module)) == ["1"]


def test_exclude_takes_modules_away(tiny_llama):
    chosen = choose_modules(tiny_llama(), ["all-linear"], exclude=["*.mlp.*", "o_proj"])
    assert last_parts(chosen) == {"q_proj", "k_proj", "v_proj"}


def test_an_exclusion_that_matches_nothing_is_told(tiny_llama, capsys):
    choose_modules(tiny_llama(), ["q_proj"], exclude=["*vision*"])
    assert "`*vision*` matches no module" in capsys.readouterr().err


def test_excluding_everything_is_an_error(tiny_llama):
    with pytest.raises(InputError, match="nothing is left"):
        choose_modules(tiny_llama(), ["q_proj"], exclude=["*"])


def test_layers_choose_among_the_targets(tiny_llama):
    assert choose_modules(tiny_llama(), ["q_proj"], layers=[1]) == ["model.layers.1.self_attn.q_proj"]


def test_a_layer_that_is_not_there_is_an_error(tiny_llama):
    with pytest.raises(InputError, match="no layer 2; the chosen modules lie in layers 0 to 1"):
        choose_modules(tiny_llama(), ["q_proj"], layers=[0, 2])


def test_each_entry_must_match_something(tiny_llama):
    with pytest.raises(InputError) as caught:
        choose_modules(tiny_llama(), ["q_proj", "v_porj"])
    message = str(caught.value)
    assert "`v_porj` matches no linear module; did you mean `v_proj`?" in message
    assert "model.layers.*.self_attn.q_proj x 2" in message
    assert "lm_head" in message


@pytest.mark.parametrize(("entry", "kind"), [("norm", "LlamaRMSNorm"), ("self_attn", "LlamaAttention")])
def test_a_module_that_no_adapter_fits_is_an_error(tiny_llama, entry, kind):
    with pytest.raises(InputError, match=rf"`{entry}` means .*{entry}, a {kind}"):
        choose_modules(tiny_llama(), [entry])


def test_a_broken_regular_expression_is_an_error(tiny_llama):
    with pytest.raises(InputError, match=re.escape("`(q_proj` is no regular expression")):
        choose_modules(tiny_llama(), ["(q_proj"])


def test_the_dot_of_nemos_wildcards_is_understood_and_told(tiny_llama, capsys):
    assert choose_modules(tiny_llama(), ["*.proj"]) == choose_modules(tiny_llama(), ["*proj"])
    assert "read as in NeMo" in capsys.readouterr().err


def test_names_are_as_short_as_they_can_be():
    names = ["a.0.q", "a.0.v", "a.1.q", "a.1.v"]
    assert shortest(["a.0.q", "a.1.q"], names) == ["q"]
    assert shortest(["a.0.q", "a.1.v"], names) == ["a.0.q", "a.1.v"]


def test_the_order_is_that_of_the_model():
    module = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    assert choose_modules(module, ["a", "b"]) == ["b", "a"]
