"""Models that are made without values, and get them in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from automodel import InputError
from automodel.parallel.groups import wait_for_all
from automodel.parallel.process_group import is_first, local_rank
from automodel.parallel.weights import broadcast_weights, read_safetensors
from torch import Tensor, nn

from automodel_huggingface.gguf_files import converted_model, kept_model
from automodel_huggingface.locations import Location, unreachable


def meta_model(auto_class: str, noun: str, config: Any, dtype: str, attention: str, trust_remote_code: bool) -> Any:
    """The model that an auto class of transformers makes from a config, on the meta device.

    Raises:
        InputError: the config is of no such model (which people call `noun`), or contradicts itself.
    """
    try:
        with torch.device("meta"):
            return getattr(transformers, auto_class).from_config(
                config,
                dtype=getattr(torch, dtype.removeprefix("torch.")),
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
            )
    except (ValueError, TypeError) as error:
        raise InputError(f"no {noun} can be made from its config: {error}") from error


def take_generation_config(module: Any, location: Location, revision: str | None, cache_dir: str | None) -> None:
    """Let a model generate as its checkpoint says (stop tokens, sampling), as `from_pretrained` does."""
    if location.gguf is not None:
        return
    try:
        module.generation_config = transformers.GenerationConfig.from_pretrained(
            location.source, revision=revision, cache_dir=cache_dir
        )
    except OSError:  # it has none, and config.json has been read already: the place is there
        return


def fresh_buffers(module: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds, such as rotary frequencies.

    transformers 5 has no public call for it: `_init_weights` is what each of its models overrides to do so, for its own
    modules and not for those of a model within it, and it leaves out parameters with the mark (5.23). The tests called
    test_models and test_meta tell when that changes.
    """
    _fresh_buffers(module, module)


def _fresh_buffers(part: nn.Module, owner: Any) -> None:
    if isinstance(part, transformers.PreTrainedModel):
        owner = part
    if part._non_persistent_buffers_set:
        for parameter in part.parameters():  # SigLIP's embeddings draw those of their children
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        owner._init_weights(part)
    for child in part.children():
        _fresh_buffers(child, owner)


def weights_directory(location: Location, revision: str | None, cache_dir: str | None) -> Path | None:
    """The local directory of a location's safetensors files, fetched from the Hub if they lie there.

    Raises:
        InputError: the Hub does not give them.
    """
    if location.directory is not None:
        return location.directory
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(
                location.name,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=["*.safetensors", "*.json"],
                ignore_patterns=["consolidated*.safetensors"],  # the same weights once more, by other names
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(unreachable(location.name, revision, error)) from error


def conversion(gguf: Path, dtype: str) -> Path | None:
    """The directory with a GGUF file's weights in safetensors, made by the first process of each machine.

    None if it is not kept.
    """
    if local_rank() == 0:
        converted_model(gguf, dtype)
    wait_for_all()
    return kept_model(gguf, dtype)


def fill_from_directory(tensors: Mapping[str, Tensor], directory: Path) -> bool:
    """Let each process read its parts from the directory's safetensors files, and return True.

    False, and nothing is read, unless they have all of `tensors` by these names and in these shapes: some models have
    others, which transformers converts as it loads them.
    """
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if any(shapes.get(name) != tuple(value.shape) for name, value in tensors.items()):
        return False
    read_safetensors(directory, tensors)
    return True


def fill_from_whole(
    tensors: Mapping[str, Tensor], load_module: Callable[[torch.device], nn.Module], device: torch.device
) -> None:
    """Let the first process load the whole model on `device`, and give every process its parts of it."""
    whole = None
    if is_first():
        module = load_module(device)
        whole = dict(module.named_parameters()) | dict(module.named_buffers())
    broadcast_weights(whole, tensors)
