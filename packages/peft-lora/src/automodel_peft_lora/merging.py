"""Merging an adapter into its base model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from automodel import InputError
from automodel.checkpoint.remote import local_copy
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from automodel_peft_lora.adapter_model import ADAPTER, AdapterModel, check_fit, saved_names
from automodel_peft_lora.bases import Base, base_from_hugging_face, base_from_recipe
from automodel_peft_lora.checkpoints import ADAPTER_CONFIG, Checkpoint, find_adapter


@dataclass(frozen=True)
class Merged:
    """What was merged.

    Args:
        adapter: the directory of the adapter.
        base: what the base model is called.
        dtype: of the merged model.
    """

    adapter: Path
    base: str
    dtype: str


def merge_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_targets: Sequence[str] = (),
) -> Merged:
    """Write the model that base and adapter are together as a Hugging Face directory; the same as `automodel merge`.

    The base is the model of the recipe in the checkpoint; for an adapter without one, that of its adapter_config.json.
    The sum is made in the base's data type, or in `dtype` where that is wider.

    Args:
        checkpoint: the directory of a run, of a checkpoint, or of a PEFT adapter.
        output: must not exist or be empty. It appears whole or not at all.
        base: where the base model lies, instead of where recipe or adapter say.
        dtype: of the merged model: float32, bfloat16 or float16; null is the base's.
        allow_targets: packages outside AutoModel's own list whose callables the recipe may name.

    Raises:
        InputError: no whole adapter, a base that it was not trained on, or an output that is in use.
    """
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output: {output} exists and is not an empty directory; nothing is overwritten")
    found = find_adapter(local_copy(checkpoint))
    if found.recipe is not None:
        start = base_from_recipe(found, base, allow_targets)
    else:
        start = base_from_hugging_face(found, base)
    module, name = merge_adapter(start.module, found.adapter, dtype)
    _write(module, found, start, output)
    return Merged(found.adapter, start.name, name)


def merge_adapter(module: Any, adapter: Path, dtype: str | None = None) -> tuple[Any, str]:
    """Add an adapter to the weights of its base, in place; returns the plain model and its data type's name.

    Raises:
        InputError: the adapter does not fit the base, is incomplete, or holds numbers that are not finite.
    """
    own = module.dtype
    wanted = own if dtype is None else getattr(torch, dtype)
    module.to(torch.promote_types(own, wanted))
    adapted = _load(module, adapter)
    _untie_adapted_embeddings(adapted)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InputError(f"{adapter} cannot be merged: {error}") from error
    merged.to(wanted)
    merged.config.dtype = wanted
    return merged, str(wanted).removeprefix("torch.")


def _load(module: nn.Module, adapter: Path) -> Any:
    """Put the adapter on its base and make sure that every tensor found its place; peft would only warn."""
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        adapted = AdapterModel(module, config)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{adapter / ADAPTER_CONFIG} does not fit the base model: {error}") from error
    check_fit(adapter, {name: value.shape for name, value in saved_names(adapted).items()})
    adapted.load_adapter(str(adapter), ADAPTER, autocast_adapter_dtype=True)
    return adapted.eval()


def _untie_adapted_embeddings(adapted: Any) -> None:
    """Give the output head its own weights where only one of head and input embedding has an adapter.

    Merged into a shared matrix, the adapter of one would change the other.
    """
    model = adapted.get_base_model()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not any(isinstance(one, BaseTunerLayer) for one in (head, embedding)):
        return
    plain_head = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    plain_embedding = embedding.get_base_layer() if isinstance(embedding, BaseTunerLayer) else embedding
    if plain_head.weight is plain_embedding.weight:
        plain_head.weight = nn.Parameter(plain_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def _write(module: Any, found: Checkpoint, start: Base, output: Path) -> None:
    """Write beside the output and rename, so that an interrupted merge leaves nothing that looks like a model."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as parent:
        unfinished = Path(parent) / "model"
        module.save_pretrained(unfinished)
        companions = found.companions()
        for path in companions:
            shutil.copy2(path, unfinished / path.name)
        if not any(path.name == "tokenizer_config.json" for path in companions):
            start.load_processor().save_pretrained(unfinished)
        mode = (unfinished / "config.json").stat().st_mode  # safetensors 0.8 writes files that only their owner reads
        for path in unfinished.glob("*.safetensors"):
            path.chmod(mode)
        if output.exists():
            output.rmdir()
        unfinished.rename(output)
