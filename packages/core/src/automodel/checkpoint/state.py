"""The state of a run as tensors and JSON: written by torch DCP as safetensors, read without pickle.

torch.distributed.checkpoint is imported where it is used: that delays the first save by 2.5 s, not the first step.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from automodel.errors import InputError
from automodel.training.rng import restore_rng, rng_tensors
from automodel.training.step_scheduler import Progress

if TYPE_CHECKING:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    from automodel.training.parts import Parts

_SCALARS = "trainer.json"


def save_state(directory: Path, parts: Parts) -> None:
    """Write everything that resuming needs into `directory`: `*.safetensors` by DCP and `trainer.json`."""
    optimizer = _optimizer_state(parts)
    tensors = {
        **_model_tensors(parts.module),
        **_prefixed("optimizer", {name: value for name, value in optimizer.items() if torch.is_tensor(value)}),
        **_prefixed("rng", rng_tensors()),
    }
    scalars = {
        "progress": asdict(parts.progress),
        "optimizer": {name: value for name, value in optimizer.items() if not torch.is_tensor(value)},
        "lr_scheduler": parts.lr_scheduler.state_dict(),
        "settings": _settings(parts),
        "dataloader": parts.loader.state_dict(),
        "fingerprint": parts.fingerprint,
    }
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _one_process():
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        save(tensors, storage_writer=writer, no_dist=True)
    (directory / _SCALARS).write_text(json.dumps(scalars) + "\n", encoding="utf-8")


def load_state(directory: Path, parts: Parts) -> None:
    """Bring the parts of a run back to where `save_state` found them.

    Raises:
        InputError: the checkpoint is of another model, optimizer or adapter.
    """
    scalars = load_model(directory, parts.module, parts.fingerprint)
    _load_optimizer(directory, parts, scalars["optimizer"])
    rng = {name: tensor for name, tensor in rng_tensors().items() if f"rng.{name}" in _saved_shapes(directory)}
    _load_tensors(directory, _prefixed("rng", rng))
    base_lrs = parts.lr_scheduler.base_lrs
    parts.lr_scheduler.load_state_dict(scalars["lr_scheduler"])
    _take_over_settings(parts, base_lrs, scalars["settings"])
    parts.loader.load_state_dict(scalars["dataloader"])
    parts.progress.__dict__.update(asdict(Progress(**scalars["progress"])))
    restore_rng(rng)


def _load_optimizer(directory: Path, parts: Parts, scalars: dict[str, Any]) -> None:
    """Load the optimizer's moments. A parameter that had no gradient so far has none, and gets none."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    state = _optimizer_state(parts)
    saved = _saved_shapes(directory)
    names = {id(parameter): name for name, parameter in parts.module.named_parameters()}
    seen = {name for name in names.values() if any(key.startswith(f"optimizer.state.{name}.") for key in saved)}
    moments = {
        key: value
        for key, value in state.items()
        if torch.is_tensor(value) and key.removeprefix("state.").rpartition(".")[0] in seen
    }
    _load_tensors(directory, _prefixed("optimizer", moments))  # in place
    set_optimizer_state_dict(parts.module, parts.optimizer, state | scalars, options=_flat())
    for parameter in list(parts.optimizer.state):
        if names[id(parameter)] not in seen:
            del parts.optimizer.state[parameter]


def _take_over_settings(parts: Parts, base_lrs: list[Any], saved: dict[str, Any]) -> None:
    """Let what the recipe has changed since the checkpoint count: the optimizer's settings and the schedule's shape."""
    optimizer, scheduler = parts.optimizer, parts.lr_scheduler
    for key, value in _settings(parts).items():
        if key != "lr" and saved.get(key, value) != value:
            for group in optimizer.param_groups:
                group[key] = optimizer.defaults[key]
    for index, (group, base_lr) in enumerate(zip(optimizer.param_groups, base_lrs, strict=True)):
        if isinstance(scheduler, LambdaLR):
            group["lr"] = base_lr * scheduler.lr_lambdas[index](scheduler.last_epoch)
        elif base_lr != scheduler.base_lrs[index]:
            group["lr"] *= base_lr / scheduler.base_lrs[index]
        group["initial_lr"] = base_lr
    scheduler.base_lrs = base_lrs


def _settings(parts: Parts) -> dict[str, Any]:
    """The optimizer's settings as the recipe and torch's defaults have them, as JSON has them."""
    settings: dict[str, Any] = json.loads(json.dumps(parts.optimizer.defaults, default=str))
    return settings


def load_model(directory: Path, module: nn.Module, fingerprint: str) -> dict[str, Any]:
    """Load the trained parameters and buffers into `module` and return the checkpoint's scalars.

    Raises:
        InputError: the checkpoint is of another model or adapter.
    """
    scalars = json.loads((directory / _SCALARS).read_text(encoding="utf-8"))
    if scalars["fingerprint"] != fingerprint:
        raise InputError(
            f"{directory.parent} is a checkpoint of another model: the pretrained weights it started from are not "
            "those of this recipe's model; give the model it was made with, another checkpoint.checkpoint_dir, or "
            "another --resume"
        )
    _load_tensors(directory, _model_tensors(module))
    return scalars


def fingerprint(module: nn.Module) -> str:
    """A digest of a model's parameter names, shapes and a sample of their values, cheap at any size."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _optimizer_state(parts: Parts) -> dict[str, Any]:
    """The optimizer's state by parameter names, flat: `state.<parameter>.exp_avg`, `param_groups.<parameter>.lr`."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(parts.module, parts.optimizer, options=_flat())


def _flat() -> StateDictOptions:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(flatten_optimizer_state_dict=True, ignore_frozen_params=True)


def _model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: parameters that require a gradient (tied ones once) and persistent buffers."""
    trainable = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    persistent = module.state_dict().keys()
    buffers = {name: value for name, value in module.named_buffers() if name in persistent}
    return _prefixed("model", trainable | buffers)


def _load_tensors(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Read into `tensors`, in place."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    saved = _saved_shapes(directory)
    wrong = [
        f"{name} is {saved[name]} in it" if name in saved else f"{name} is not in it"
        for name, value in tensors.items()
        if saved.get(name) != tuple(value.shape)
    ]
    if wrong:
        raise InputError(
            f"{directory.parent} does not fit this recipe (another model, adapter or optimizer): "
            f"{'; '.join(wrong[:3])}{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; "
            "give the recipe it was made with, another checkpoint.checkpoint_dir, or another --resume"
        )
    with _one_process():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)


def _saved_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint and their shapes."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    return {name: tuple(one.size) for name, one in metadata.items() if isinstance(one, TensorStorageMetadata)}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


@contextmanager
def _one_process() -> Iterator[None]:
    """DCP warns that there is no process group although `no_dist` says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
