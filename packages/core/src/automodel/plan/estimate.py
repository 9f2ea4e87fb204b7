"""Memory and traffic of one process of a run, from the recipe's own model and layout on meta and fake tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from automodel.interfaces import Parallelism
from automodel.notices import notice
from automodel.parallel.ddp import DataParallel
from automodel.parallel.groups import group_size
from automodel.recipe import Recipe
from automodel.training.activation_checkpointing import checkpoint_activations
from automodel.training.build import build, build_optimizer
from automodel.training.label_tokens import takes_logits_to_keep, unwrapped
from automodel.training.options import TrainingOptions
from automodel.training.output_layer import tokens_of_a_part
from automodel.training.step_scheduler import StepScheduler

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """Bytes in one process. Its fields up to `activations` are memory, the last two what it sends in a step.

    Args:
        parameters: its part of them.
        gradients: its part of them; the whole of the trainable ones while they accumulate over micro-batches.
        optimizer: its part of the optimizer's state.
        gathered: whole parameters that it holds while it computes with them, and a whole gradient before it is reduced.
        activations: what the forward pass of a micro-batch keeps for the backward pass, and the logits that exist at
            once. An upper bound with tensor parallelism, which shares out some of them.
        sent_for_parameters: to gather and average parameters and gradients.
        sent_for_activations: by tensor and context parallelism.
        num_parameters: of the whole model.
        num_trainable: of these.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    sent_for_parameters: int
    sent_for_activations: int
    num_parameters: int
    num_trainable: int

    @property
    def total(self) -> int:
        """All memory."""
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


def estimate(recipe: Recipe, world_size: int, sequence_length: int) -> Plan:
    """Plan one process of a checked recipe.

    Args:
        recipe: with a model that `empty_module` can make.
        world_size: processes of the run.
        sequence_length: tokens of each sample.

    Raises:
        InputError: the layout does not go with the number of processes, or the model cannot be made without values.
    """
    scheduler: StepScheduler = build(recipe, "step_scheduler")
    loader = recipe.target("dataloader")
    batch_size = scheduler.local_batch_size or (loader.kwargs.get("batch_size", 1) if loader is not None else 1)
    activations = _activations(recipe, sequence_length, batch_size)
    with fake_processes(world_size):
        parallelism: Parallelism = build(recipe, "distributed", device=CPU)
        accumulation = scheduler.micro_batches_per_step(batch_size * group_size(parallelism.dp_group))
        module = _meta_module(recipe)
        if parallelism.shards_parameters:
            parallelism.parallelize(module)
        cp = group_size(parallelism.cp_group)
        tp = world_size // (cp * group_size(parallelism.dp_group))
        distributed = recipe.target("distributed")
        deferred = distributed is None or distributed.kwargs.get("defer_fsdp_grad_sync", True)
        reductions = 1 if deferred else accumulation
        shared = _shared(module, accumulation, reductions, data_parallel=isinstance(parallelism, DataParallel))
        sent = _sent_for_activations(module, tp, cp, batch_size * sequence_length * accumulation)
        per_element = _state_bytes(recipe, [p for p in module.parameters() if p.requires_grad])
        trainable = [_local(p).numel() for p in module.parameters() if p.requires_grad]
        return replace(
            shared,
            optimizer=int(sum(trainable) * per_element),
            activations=activations // cp,
            sent_for_activations=sent,
        )


@contextmanager
def fake_processes(world_size: int) -> Iterator[None]:
    """A process group of so many processes of which only this one, the first, exists."""
    # private, and what torch's own tests use (torch 2.15); tests/test_plan.py tells when it goes
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if world_size == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _meta_module(recipe: Recipe) -> nn.Module:
    module: nn.Module = build(recipe, "model").empty_module(CPU)
    if recipe.has("peft"):
        module = build(recipe, "peft").apply(module)
    return module.to("meta")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shared(module: nn.Module, accumulation: int, reductions: int, data_parallel: bool) -> Plan:
    parameters = list(module.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    gathered, sent, whole_gradients = _sharding(module, accumulation, reductions)
    own = sum(_local(p).nbytes for p in parameters)
    gradients = sum(_local(p).nbytes for p in trainable)
    if data_parallel and dist.is_initialized():
        world = dist.get_world_size()
        sent = 2 * gradients * (world - 1) // world
    return Plan(
        parameters=own,
        gradients=max(gradients, whole_gradients),
        optimizer=0,
        gathered=gathered,
        activations=0,
        sent_for_parameters=sent,
        sent_for_activations=0,
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in trainable),
    )


def _sharding(module: nn.Module, accumulation: int, reductions: int) -> tuple[int, int, int]:
    """FSDP's bytes: gathered at a time, sent in a step, and of whole gradients.

    A unit's parameters are gathered before its forward pass, and before its backward pass if they were freed between;
    the next unit's are fetched meanwhile. Gradients are whole until they are reduced, `reductions` times a step.
    """
    units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
    freed: list[int] = []
    kept = sent = whole_gradients = largest_gradient = 0
    for unit in units:
        # private (torch 2.15): there is no public way to ask a module how it was sharded
        for group in unit._get_fsdp_state()._fsdp_param_groups:
            mesh: Any = group.mesh_info
            shards, replicas = mesh.shard_mesh_size, getattr(mesh, "replicate_mesh_size", 1)
            size, trainable = 0, 0
            for parameter in group.fsdp_params:
                numel = _local(parameter.sharded_param).numel() * shards
                dtype = parameter.mp_policy.param_dtype or parameter.sharded_param.dtype
                size += numel * dtype.itemsize
                if parameter.sharded_param.requires_grad:
                    trainable += numel * (parameter.mp_policy.reduce_dtype or dtype).itemsize
            whole_gradients += trainable
            largest_gradient = max(largest_gradient, trainable)
            reshards = group.post_forward_mesh_info is not None and unit is not module
            if reshards:
                freed.append(size)
            else:
                kept += size
            passes = accumulation * (2 if reshards else 1)
            sent += size * passes * (shards - 1) // shards + reductions * trainable * (shards - 1) // shards
            sent += reductions * 2 * (trainable // shards) * (replicas - 1) // replicas
    if reductions < accumulation:
        return kept + sum(sorted(freed)[-2:]), sent, whole_gradients
    return kept + sum(sorted(freed)[-2:]) + largest_gradient, sent, 0


def _sent_for_activations(module: nn.Module, tp: int, cp: int, num_tokens: int) -> int:
    """Tensor parallelism reduces a layer's output twice forward and twice backward; context gathers keys and values."""
    model: Any = module
    if hasattr(module, "get_base_model"):  # peft wraps the model
        model = model.get_base_model()
    config = model.config.get_text_config()
    width = next(module.parameters()).element_size()
    layers = config.num_hidden_layers
    reduced = 4 * layers * num_tokens // cp * config.hidden_size * width * 2 * (tp - 1) // tp
    # not every family's configuration has a size of its own for heads, and some say None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys_and_values = 2 * config.num_key_value_heads * head_dim * width
    return int(reduced + 2 * layers * num_tokens * keys_and_values * (cp - 1) // cp)


def _state_bytes(recipe: Recipe, trainable: list[nn.Parameter]) -> float:
    """The optimizer's bytes for each trainable element, from what the recipe's optimizer keeps of a small one."""
    total = 0.0
    for dtype in {p.dtype for p in trainable}:
        small = nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        small.grad = torch.ones_like(small)
        optimizer = build_optimizer(recipe, [small])
        optimizer.step()
        state = [value for value in optimizer.state[small].values() if torch.is_tensor(value) and value.dim()]
        share = sum(p.numel() for p in trainable if p.dtype == dtype) / sum(p.numel() for p in trainable)
        total += share * sum(value.nbytes for value in state) / small.numel()
    return total


def _activations(recipe: Recipe, sequence_length: int, batch_size: int) -> int:
    """Bytes that the forward pass and the loss of one micro-batch keep, in fake tensors of an unsharded model."""
    options: TrainingOptions = build(recipe, "training")
    distributed = recipe.target("distributed")
    asked = distributed.kwargs if distributed is not None else {}
    module = _meta_module(recipe)
    if "pixel_values" in inspect.signature(module.forward).parameters:
        notice("the model reads images: what its vision tower keeps of them is not counted among the activations")
    if asked.get("mixed_precision"):
        module = module.to(torch.bfloat16)
    with FakeTensorMode():
        _fake(module)
        if options.activation_checkpointing or asked.get("activation_checkpointing"):
            checkpoint_activations(module, asked.get("activation_checkpointing") or "full")
        module.train()
        own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        ids = torch.zeros(batch_size, sequence_length, dtype=torch.int64)
        alive = []  # a storage that has gone gives its address to the next

        def keep(tensor: Tensor) -> Tensor:
            alive.append(tensor)
            return note(tensor)

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=options.mixed_precision == "bf16"),
        ):
            logits_NV, besides = _logits_at_once(module, ids, in_parts=asked.get("tp_size") in (None, 1))
            # in float32: an accelerator's loss keeps its log-probabilities; that of a CPU, called here, its gradients
            loss = build(recipe, "loss_fn")(logits_NV.float(), ids.new_zeros(len(logits_NV)))
        assert loss.requires_grad
        # besides what is kept: the logits themselves, and the gradients of the loss by log-probabilities and by logits
        return sum(kept.values()) + besides + logits_NV.nbytes + 2 * logits_NV.numel() * 4


def _fake(module: nn.Module) -> None:
    """Replace meta tensors by fake ones that say they lie on the CPU, where attention has its fused kernel."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if id(value) not in made:
                empty = torch.empty(value.shape, dtype=value.dtype, device=CPU)
                made[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad)
            setattr(part, name, made[id(value)])
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CPU))


def _logits_at_once(module: nn.Module, ids_BL: Tensor, in_parts: bool) -> tuple[Tensor, int]:
    """The logits (N, V) that exist together where every position has a label, and bytes of what that needs besides.

    No mask depends on values, as fake tensors have none.
    """
    model = unwrapped(module)
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if layer is not None and in_parts and takes_logits_to_keep(module):
        hidden: list[Tensor] = []

        def hand_on(given: Tensor) -> Tensor:
            hidden.append(given)
            return given

        layer.forward = hand_on
        handed_on = module(input_ids=ids_BL, use_cache=False).logits
        del layer.forward
        if handed_on is hidden[-1]:
            hidden_ND = hidden[-1][:, :-1].flatten(0, 1)
            trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
            # the sum of the parts' gradients by weights, in float32, and one part's
            of_weights = sum(parameter.numel() * 4 + parameter.nbytes for parameter in trained)
            # of all positions, of those with labels, and the gradients of these
            return layer(hidden_ND[: tokens_of_a_part(layer, CPU)]), 3 * hidden_ND.nbytes + of_weights
    return module(input_ids=ids_BL, use_cache=False).logits[:, :-1].flatten(0, 1), 0
