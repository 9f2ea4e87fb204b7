"""Tensor parallelism: each process has some rows or columns of every linear layer, as transformers' plan says.

What the plan does not name (norms, embeddings) is on every process, as a replicated DTensor, so that all parameters lie
on one mesh and gradients are clipped as one vector.
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

from automodel import InputError
from automodel.parallel.weights import tied_places
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)


class Replicated(ParallelStyle):
    """A module whose parameters are whole on every process, as DTensors; it takes and gives ordinary tensors."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def distribute(name: str, part: nn.Module, mesh: DeviceMesh) -> None:
            for key, parameter in part.named_parameters(recurse=False):
                whole = distribute_tensor(parameter, mesh, [Replicate()])
                part.register_parameter(key, nn.Parameter(whole, requires_grad=parameter.requires_grad))

        def enter(part: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            return tuple(DTensor.from_local(x, mesh, [Replicate()]) if isinstance(x, Tensor) else x for x in inputs)

        def leave(part: nn.Module, output: Tensor, mesh: DeviceMesh) -> Tensor:
            return output.to_local() if isinstance(output, DTensor) else output

        return distribute_module(module, device_mesh, distribute, enter, leave)  # type: ignore[arg-type]


_COLWISE = {"colwise", "colwise_rep", "colwise_gather_output"}
_ROWWISE = {"rowwise", "rowwise_rep", "rowwise_split_input"}
_OTHERS = {"embedding_rowwise", "replicated_with_grad_allreduce"}
"""transformers' names of styles (its integrations/tensor_parallel.py), old and new."""


def apply(model: Any, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Share out a transformers model's layers, with or without adapters, in place.

    Raises:
        InputError: transformers has no plan for it, or its heads cannot be divided so.
    """
    _quiet()
    plan = _plan(model)
    _check_heads(model, mesh.size())
    tied = tied_places(model)
    in_layers = _sequence_layout(model, mesh) if sequence_parallel else {}
    adapted = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    for name, module in list(model.named_modules()):
        if any(name.startswith(f"{outer}.") for outer in adapted):
            continue
        style = _style(name, plan)
        if name in adapted:
            _share_adapter(name, module, style, mesh, sequence_parallel)
        elif name in in_layers:
            _parallelize(module, mesh, in_layers[name])
        elif style is not None:
            _parallelize(module, mesh, _shared(style, sequence_parallel))
        elif next(module.parameters(recurse=False), None) is not None:
            _parallelize(module, mesh, Replicated())
    for (owner, key), (other, other_key) in tied:
        setattr(owner, key, getattr(other, other_key))


def _parallelize(module: nn.Module, mesh: DeviceMesh, style: ParallelStyle) -> None:
    """Let a module have a style; what is frozen stays so, which torch 2.15's SequenceParallel forgets."""
    trains = {name: parameter.requires_grad for name, parameter in module.named_parameters(recurse=False)}
    parallelize_module(module, mesh, style)
    for name, parameter in module.named_parameters(recurse=False):
        parameter.requires_grad_(trains[name])


def _quiet() -> None:
    """Leave out torch 2.15's remarks in every process: nobody writes into outputs, and saving gathers in two steps."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def _plan(model: Any) -> dict[str, str]:
    plan: dict[str, str] = dict(model.tp_plan or {}) if hasattr(model, "tp_plan") else {}
    if not plan:
        raise InputError(f"transformers has no tensor-parallel plan for {type(model).__name__}; use tp_size: 1")
    if unknown := sorted(set(plan.values()) - _COLWISE - _ROWWISE - _OTHERS):
        raise InputError(
            f"tensor parallelism of {type(model).__name__} needs {', '.join(unknown)}, which is not supported here"
        )
    return plan


def _check_heads(model: Any, size: int) -> None:
    config = model.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        if (number := getattr(config, name, None)) is not None and number % size:
            raise InputError(f"tp_size {size} does not divide the model's {name}: {number}")


def _style(name: str, plan: dict[str, str]) -> str | None:
    """The plan's entry for a module; layer numbers are `*` in it."""
    return plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))


def _shared(style: str, sequence_parallel: bool) -> ParallelStyle:
    """torch's style for one of transformers'; rows' outputs are shared along the sequence with `sequence_parallel`."""
    match style:
        case "colwise":
            return ColwiseParallel()
        case "embedding_rowwise":
            return RowwiseParallel(input_layouts=Replicate())
        case "replicated_with_grad_allreduce":
            # a norm of each head: the heads of other processes are other positions to it
            return SequenceParallel(use_local_output=True)
    if style in _COLWISE:
        return ColwiseParallel(output_layouts=Replicate())
    given = Replicate() if style == "rowwise_split_input" else Shard(-1)
    return RowwiseParallel(input_layouts=given, output_layouts=Shard(1) if sequence_parallel else Replicate())


def _share_adapter(name: str, module: Any, style: str | None, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Share a LoRA layer: the base by the plan; of A and B the one that lies on the shared side likewise."""
    adapters = [(module.lora_A[key], module.lora_B[key]) for key in module.lora_A]
    if not adapters or not isinstance(module.base_layer, nn.Linear):
        raise InputError(f"tensor parallelism takes adapters on linear layers only, not on {name}; use tp_size: 1")
    _parallelize(module.base_layer, mesh, Replicated() if style is None else _shared(style, sequence_parallel))
    before: ParallelStyle = Replicated()
    after: ParallelStyle = Replicated()
    if style in _COLWISE:
        after = _shared(style, sequence_parallel)
    elif style in _ROWWISE:
        before = _shared(style, sequence_parallel)
        after = SequenceParallel(use_local_output=True) if sequence_parallel else after
    for down, up in adapters:
        _parallelize(down, mesh, before)
        _parallelize(up, mesh, after)


def _sequence_layout(model: Any, mesh: DeviceMesh) -> dict[str, ParallelStyle]:
    """The styles of the modules between the linear layers when activations are shared along the sequence.

    Raises:
        InputError: the model's layers are not built as Llama's are.
    """
    layout: dict[str, ParallelStyle] = {}
    names = dict(model.named_modules())
    layers = [name for name in names if re.fullmatch(r"(.*\.)?layers\.\d+", name)]
    norms = ("input_layernorm", "post_attention_layernorm")
    root = layers[0].rpartition("layers.")[0] if layers else ""
    parts = {frozenset(name for name, _ in names[layer].named_children()) for layer in layers}
    if parts != {frozenset((*norms, "self_attn", "mlp"))} or f"{root}norm" not in names:
        raise InputError(f"sequence_parallel is for models built like Llama, which {type(model).__name__} is not")
    for layer in layers:
        for norm in norms:
            layout[f"{layer}.{norm}"] = SequenceParallel(use_local_output=True)
        layout[f"{layer}.self_attn"] = PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": Shard(1)},
            desired_input_kwarg_layouts={"hidden_states": Replicate()},
            use_local_output=True,
        )
        layout[f"{layer}.mlp"] = PrepareModuleInput(
            input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),), use_local_output=True
        )
    layout[layers[0]] = PrepareModuleInput(
        input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),), use_local_output=True
    )
    layout[f"{root}norm"] = _GatheredNorm()
    return layout


class _GatheredNorm(SequenceParallel):
    """The last norm: its output is whole on every process."""

    def __init__(self) -> None:
        super().__init__(use_local_output=False)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        shared = super()._apply(module, device_mesh)
        shared.register_forward_hook(
            lambda part, inputs, output: output.redistribute(placements=[Replicate()]).to_local()
        )
        return shared
