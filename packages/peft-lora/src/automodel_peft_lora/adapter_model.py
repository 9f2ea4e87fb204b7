"""The model with its adapters: peft's, saved the same way on every machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel import InputError
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from automodel_peft_lora.checkpoints import ADAPTER_WEIGHTS

ADAPTER = "default"
"""The name that peft gives the only adapter of a model, and loads it under."""


class AdapterModel(PeftModel):
    """A `peft.PeftModel` that is saved without asking the Hub, and with a config that is the same in every process."""

    def __init__(self, model: nn.Module, config: PeftConfig, autocast_adapter_dtype: bool = True) -> None:
        name = model.__dict__.get("name_or_path")  # an instance attribute of models that were loaded from somewhere
        config.base_model_name_or_path = name or None
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 by the old name of an attribute; drop this when it has learnt the new one
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            super().__init__(model, config, ADAPTER, autocast_adapter_dtype=autocast_adapter_dtype)
        for collection in ("target_modules", "modules_to_save"):
            if isinstance(value := getattr(config, collection), set):  # a set's order differs from process to process
                setattr(config, collection, sorted(value))

    def save_pretrained(
        self, save_directory: str | Path, state_dict: Mapping[str, Tensor] | None = None, is_main_process: bool = True
    ) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, which peft, transformers and vLLM load.

        Args:
            save_directory: created if it is not there.
            state_dict: the whole state dict, for a model whose own parameters are shards; null takes the model's.
            is_main_process: whether this process writes.
        """
        given: dict[str, Any] = {} if state_dict is None else {"state_dict": dict(state_dict)}
        # peft would look for the base's config.json on the Hub to see whether the vocabulary was resized; recipes
        # cannot resize it, and embeddings that are adapted or in modules_to_save are saved all the same.
        super().save_pretrained(
            str(save_directory), save_embedding_layers=False, is_main_process=is_main_process, **given
        )

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write no model card: peft's is an empty form."""


def saved_names(adapted: Any) -> dict[str, Tensor]:
    """The tensors of an adapter by the names that its file has for them."""
    return dict(get_peft_model_state_dict(adapted, save_embedding_layers=False))


def check_fit(adapter: Path, expected: Mapping[str, Sequence[int]]) -> None:
    """Check that an adapter's file has all tensors of these names and shapes and no other; peft would only warn.

    Raises:
        InputError: it has not, or cannot be read.
    """
    try:
        with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
            saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{adapter / ADAPTER_WEIGHTS} is damaged: {error}") from error
    wrong = [
        *(f"{name} is missing" for name in sorted(expected.keys() - saved.keys())),
        *(f"{name} has no place in the base model" for name in sorted(saved.keys() - expected.keys())),
        *(
            f"{n} is {saved[n]}, not {tuple(expected[n])}"
            for n in sorted(saved.keys() & expected.keys())
            if saved[n] != tuple(expected[n])
        ),
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{adapter / ADAPTER_WEIGHTS} does not fit the base model: {'; '.join(wrong[:3])}{more}")
