"""The state of a run as tensors and JSON: written by torch DCP as safetensors, read without pickle.

torch.distributed.checkpoint is imported where it is used: that delays the first save by 2.5 s, not the first step.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from automodel.errors import InputError
from automodel.notices import notice
from automodel.parallel.groups import gathered, group_rank, group_size
from automodel.parallel.process_group import is_first
from automodel.training.rng import restore_rng, rng_tensors
from automodel.training.step_scheduler import Progress

if TYPE_CHECKING:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    from automodel.training.parts import Parts

_SCALARS = "trainer.json"


def state_of(parts: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that resuming needs: tensors by name, and what JSON holds. All processes call it together."""
    optimizer = _optimizer_state(parts)
    tensors = {
        **_model_tensors(parts.module),
        **_prefixed("optimizer", {name: value for name, value in optimizer.items() if torch.is_tensor(value)}),
        **_prefixed(_rng_key(parts), rng_tensors()),
    }
    scalars = {
        "progress": asdict(parts.progress),
        "optimizer": {name: value for name, value in optimizer.items() if not torch.is_tensor(value)},
        "lr_scheduler": parts.lr_scheduler.state_dict(),
        "settings": _settings(parts),
        "dataloader": gathered(parts.loader.state_dict(), parts.parallelism.dp_group),
        "samples_per_step": parts.samples_per_step,
        "fingerprint": parts.fingerprint,
    }
    return tensors, scalars


def write_state(
    directory: Path, tensors: dict[str, Tensor], scalars: dict[str, Any], group: dist.ProcessGroup | None = None
) -> None:
    """Write what `state_of` gave: `*.safetensors` by DCP and `trainer.json`. Each process writes its part.

    Args:
        directory: exists.
        tensors: some may be DTensors.
        scalars: the first process's are written.
        group: of all processes; null is the default one.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _quiet_alone():
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        save(tensors, storage_writer=writer, process_group=group, no_dist=not dist.is_initialized())
    if is_first():
        (directory / _SCALARS).write_text(json.dumps(scalars) + "\n", encoding="utf-8")


def load_state(directory: Path, parts: Parts) -> None:
    """Bring the parts of a run back to where `save_state` found them, in any number of processes.

    A process that did not exist then keeps the random numbers of its seed.

    Raises:
        InputError: the checkpoint is of another model, optimizer or adapter.
    """
    scalars = load_model(directory, parts.module, parts.fingerprint)
    _load_optimizer(directory, parts, scalars["optimizer"])
    key, saved = _rng_key(parts), _saved_shapes(directory)
    now = rng_tensors()
    rng = {name: tensor for name, tensor in now.items() if f"{key}.{name}" in saved}
    load_tensors(directory, _prefixed(key, rng))
    base_lrs = parts.lr_scheduler.base_lrs
    parts.lr_scheduler.load_state_dict(scalars["lr_scheduler"])
    _take_over_settings(parts, base_lrs, scalars["settings"])
    _load_loader(parts, scalars["dataloader"])
    parts.progress.__dict__.update(asdict(Progress(**scalars["progress"])))
    restore_rng(now | rng)
    if (before := scalars["samples_per_step"]) != parts.samples_per_step:
        notice(
            f"a step had {before} samples when the checkpoint was saved, and has {parts.samples_per_step} now; with "
            f"step_scheduler.global_batch_size: {before} it has as many on any number of processes"
        )


def _load_loader(parts: Parts, states: list[dict[str, Any]]) -> None:
    dp_group = parts.parallelism.dp_group
    if not any(states):
        parts.loader.load_state_dict({})
    elif len(states) == group_size(dp_group):
        parts.loader.load_state_dict(states[group_rank(dp_group)])
    else:
        raise InputError(
            f"this run was saved with a streaming data set shared by {len(states)} processes, and goes on only with as "
            f"many, not {group_size(dp_group)}; a data set that is not streaming goes on with any number"
        )


def _rng_key(parts: Parts) -> str:
    """Random numbers are those of a process among the ones that hold different samples or positions."""
    dp_group, cp_group = parts.parallelism.dp_group, parts.parallelism.cp_group
    return f"rng.{group_rank(dp_group) * group_size(cp_group) + group_rank(cp_group)}"


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
    load_tensors(directory, _prefixed("optimizer", moments))  # in place
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
    load_tensors(directory, _model_tensors(module))
    module.load_state_dict({}, strict=False)  # torch's hooks for a module whose values have been loaded
    return scalars


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of names, shapes and a sample of values, cheap at any size, the same for whole and sharded tensors."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        flat = whole(parameter).flatten()
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
    # not detached: that would lose what an unevenly shared DTensor says of its part
    trainable = {name: value for name, value in module.named_parameters() if value.requires_grad}
    persistent = module.state_dict().keys()
    buffers = {name: value for name, value in module.named_buffers() if name in persistent}
    return _prefixed("model", trainable | buffers)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, which all its processes ask for together; any other tensor as it is. Both detached.

    A DTensor whose parts are not those that torch would make says which it has as it does for torch.distributed.
    checkpoint: by `__create_chunk_list__` of its local tensor.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor.detach()
    # private in torch 2.15, which asks just so itself; tests/checkpoint/test_uneven_parts.py tells when it changes
    if not hasattr(tensor._local_tensor, "__create_chunk_list__"):
        return tensor.full_tensor()
    full = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    for chunk in tensor.__create_chunk_list__():
        part = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        full[part] = tensor.to_local()
    bits = full.view(-1).view(torch.uint8)  # every bit comes from one process
    for axis, placement in enumerate(tensor.placements):
        if not placement.is_replicate():
            dist.all_reduce(bits, group=tensor.device_mesh.get_group(axis))
    return full


def load_tensors(directory: Path, tensors: dict[str, Tensor]) -> None:
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
    reader = HuggingFaceStorageReader(str(directory))
    with _quiet_alone():
        load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())


def _saved_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint and their shapes."""
    return {name: shape for name, (shape, _) in saved_tensors(directory).items()}


def saved_tensors(directory: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The tensors of a checkpoint, their shapes and data types."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    return {
        name: (tuple(one.size), one.properties.dtype)
        for name, one in metadata.items()
        if isinstance(one, TensorStorageMetadata)
    }


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """DCP warns that there is no process group although `no_dist` says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
