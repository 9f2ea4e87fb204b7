"""Which models' attention can be shared out along the sequence; tests/test_parallel.py compares the numbers."""

import pytest
from automodel import InputError
from automodel.plan.estimate import fake_processes
from automodel_distributed_fsdp2 import context_parallel
from torch.distributed.device_mesh import init_device_mesh
from transformers import CONFIG_MAPPING, AutoModelForCausalLM


@pytest.fixture
def mesh():
    with fake_processes(2):
        yield init_device_mesh("cpu", (2,))


def model(model_type, **settings):
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](vocab_size=64, **settings))


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        (
            "gptj",
            {"n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
            "reach into the attention of GPTJForCausalLM",
        ),
        (
            "mamba",
            {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
            "is for full causal attention, and MambaForCausalLM has linear_attention; use cp_size: 1",
        ),
        (
            "gemma3_text",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16, "pad_token_id": 0},
            "is for full causal attention, and Gemma3ForCausalLM has sliding_attention; use cp_size: 1",
        ),
    ],
)
def test_models_without_plain_causal_attention_are_refused(mesh, model_type, settings, message):
    with pytest.raises(InputError, match=message):
        context_parallel.apply(model(model_type, **settings), mesh)
