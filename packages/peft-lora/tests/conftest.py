"""Tiny models with random weights, made in milliseconds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from automodel.notices import strictness
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 97
IDS_BL = torch.arange(2 * 11).reshape(2, 11) % VOCABULARY


@pytest.fixture(autouse=True)
def notices_said_anew() -> Iterator[None]:
    with strictness(False):
        yield


@pytest.fixture
def tiny_llama() -> Callable[..., Any]:
    """Makes a Llama of two layers; equal arguments give equal weights."""

    def make(dtype: torch.dtype = torch.float32, tie: bool = True) -> Any:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tie,
        )
        return LlamaForCausalLM(config).to(dtype)

    return make


@pytest.fixture
def llama_directory(tiny_llama: Callable[..., Any], tmp_path: Path) -> Path:
    """The same Llama as a Hugging Face directory."""
    directory = tmp_path / "base"
    tiny_llama().save_pretrained(directory)
    return directory


@pytest.fixture
def logits() -> Callable[[Any], torch.Tensor]:
    """The logits (B, L, V) of a model in eval mode for a fixed input."""

    @torch.no_grad()
    def compute(module: Any) -> torch.Tensor:
        result: torch.Tensor = module.eval()(input_ids=IDS_BL).logits
        return result

    return compute


@pytest.fixture
def trained() -> Callable[[Any], Any]:
    """Takes a few large optimizer steps, so that adapters do something."""

    def train(module: Any, num_steps: int = 3) -> Any:
        module.train()
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(num_steps):
            module(input_ids=IDS_BL, labels=IDS_BL).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return module

    return train
