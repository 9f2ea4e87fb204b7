"""The provider `fsdp2`: parameters, gradients and optimizer state sharded over the processes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributed as dist
from automodel import InputError
from automodel.interfaces import Batch
from automodel.notices import notice
from automodel.training.activation_checkpointing import checkpoint_activations
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from automodel_distributed_fsdp2 import context_parallel, tensor_parallel
from automodel_distributed_fsdp2.mesh import Mesh, build_mesh, sizes


class FSDP2Manager:
    """PyTorch's FSDP2, with tensor and context parallelism. On one process it does nothing.

    Processes are arranged as dp_replicate_size x what is left x cp_size x tp_size, the last ones neighbours.

    Args:
        device: this process's.
        sharding_strategy: full_shard: parameters, gradients and optimizer state are shared out. shard_grad_op: the
            same, but parameters stay whole between forward and backward (ZeRO-2). hybrid_shard: full_shard within
            groups, with a copy in each group. no_shard: every process holds everything.
        dp_size: processes that train on different samples; null is what tp_size and cp_size leave.
        dp_replicate_size: groups that hold a copy each; null is 1, with hybrid_shard the number of machines.
        tp_size: processes that share each linear layer, by the plan that transformers has for the model.
        cp_size: processes that share the positions of each sample.
        sequence_parallel: with tp_size, norms and residuals are shared along the sequence as well; for models whose
            layers are built like Llama's.
        mixed_precision: compute in bfloat16 and average gradients in float32, whatever the parameters' data type;
            false computes in the model's.
        reshard_after_forward: free a layer's whole parameters after its forward pass; null does as sharding_strategy
            says, a number keeps them sharded over so many processes.
        forward_prefetch: ask for the next layer's parameters one layer earlier than FSDP2 does by itself.
        backward_prefetch: FSDP2 always fetches the next layer's parameters in the backward pass; false gets a note.
        cpu_offload: parameters, gradients and optimizer state lie in the CPU's memory between uses.
        defer_fsdp_grad_sync: average gradients after the last micro-batch of a step only, until when each process holds
            whole ones; false averages after each, in less memory.
        activation_checkpointing: full: compute each decoder layer again in the backward pass; selective: all but its
            matrix products and attention.
        use_hf_tp_plan: accepted for NeMo's recipes; the plan is always transformers'.
        backend: accepted for NeMo's recipes; `dist_env.backend` decides.
        world_size: checked, if given, against the number of processes.

    Raises:
        InputError: the sizes do not go with the number of processes.
    """

    def __init__(
        self,
        device: torch.device,
        sharding_strategy: Literal["full_shard", "shard_grad_op", "hybrid_shard", "no_shard"] = "full_shard",
        dp_size: int | None = None,
        dp_replicate_size: int | None = None,
        tp_size: int = 1,
        cp_size: int = 1,
        sequence_parallel: bool = False,
        mixed_precision: bool = False,
        reshard_after_forward: bool | int | None = None,
        forward_prefetch: bool = False,
        backward_prefetch: bool = True,
        cpu_offload: bool = False,
        defer_fsdp_grad_sync: bool = True,
        activation_checkpointing: Literal["full", "selective"] | None = None,
        use_hf_tp_plan: bool = True,
        backend: str | None = None,
        world_size: int | None = None,
    ) -> None:
        self.dp_group: dist.ProcessGroup | None = None
        self.cp_group: dist.ProcessGroup | None = None
        self.splits_positions = False
        self._mesh: Mesh | None = None
        self._activation_checkpointing = activation_checkpointing
        self._forward_prefetch, self._sequence_parallel = forward_prefetch, sequence_parallel
        self._defer_gradients = defer_fsdp_grad_sync
        self.parameter_device = torch.device("cpu") if cpu_offload else device
        actual = dist.get_world_size() if dist.is_initialized() else 1
        if world_size not in (None, actual):
            raise InputError(f"world_size is {world_size}, but this run has {actual} processes; leave it out")
        if not backward_prefetch:
            notice("backward_prefetch: false has no effect: FSDP2 fetches the next layer's parameters in any case")
        if backend is not None and dist.is_initialized() and backend not in dist.get_backend_config():
            notice(f"distributed.backend: {backend} has no effect; dist_env.backend chooses it")
        if sequence_parallel and tp_size == 1:
            notice("sequence_parallel has no effect without tp_size above 1")
        if actual == 1:
            sizes(1, dp_size, dp_replicate_size or 1, cp_size, tp_size)
            if mixed_precision:
                notice("distributed.mixed_precision has no effect in one process; training.mixed_precision: bf16 has")
            return
        replicate = _replicas(sharding_strategy, dp_replicate_size, dp_size or actual // max(1, cp_size * tp_size))
        self._axes = sizes(actual, dp_size, replicate, cp_size, tp_size)
        self._mesh = build_mesh(self._axes, device)
        self.dp_group, self.cp_group = self._mesh.dp_group, self._mesh.cp_group
        self.splits_positions = self.cp_group is not None or (self._mesh.tp is not None and sequence_parallel)
        if reshard_after_forward is None:
            reshard_after_forward = sharding_strategy in ("full_shard", "hybrid_shard")
        precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed_precision else MixedPrecisionPolicy()
        offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
        self._sharding: dict[str, Any] = {
            "mesh": self._mesh.parameters,
            "reshard_after_forward": reshard_after_forward,
            "mp_policy": precision,
            "offload_policy": offload,
        }

    @property
    def shards_parameters(self) -> bool:
        """Whether there is more than one process to share them."""
        return self._mesh is not None

    def parallelize(self, module: nn.Module) -> nn.Module:
        """Lay the model out, in place, and return it.

        Raises:
            InputError: it has no layers to shard by, or no plan for tensor parallelism.
        """
        if self._activation_checkpointing is not None:
            checkpoint_activations(module, self._activation_checkpointing)
        if self._mesh is None:
            return module
        model: Any = module
        if hasattr(module, "get_base_model"):  # peft wraps the model
            model = model.get_base_model()
        if self._mesh.tp is not None:
            tensor_parallel.apply(model, self._mesh.tp, self._sequence_parallel)
        if self._mesh.cp is not None:
            context_parallel.apply(model, self._mesh.cp)
        layers = _layers(model)
        for layer in layers:
            fully_shard(layer, **self._sharding)
        # the backward pass begins with what the forward pass ended with: freeing it would only fetch it again
        fully_shard(module, **{**self._sharding, "reshard_after_forward": False})
        module.register_forward_hook(_parts_again)
        if self._forward_prefetch:
            for layer, following in pairwise(layers):
                layer.set_modules_to_forward_prefetch([following])
        return module

    def shard_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The same: it steps the parts of parameters that this process has."""
        return optimizer

    def local_part(self, inputs: Batch, targets_BL: Tensor) -> tuple[Batch, Tensor]:
        """This process's positions, with context parallelism; otherwise all.

        Raises:
            InputError: rows are padded on the left, which context parallelism does not take.
        """
        if self._mesh is not None and self._mesh.cp is not None:
            tp = self._mesh.tp.size() if self._mesh.tp is not None and self._sequence_parallel else 1
            return context_parallel.local_part(inputs, targets_BL, self._mesh.cp, tp)
        if self._mesh is not None and self._mesh.tp is not None and self._sequence_parallel:
            return context_parallel.padded(inputs, targets_BL, self._mesh.tp.size())
        return inputs, targets_BL

    def micro_batch(self, module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Average gradients in the last backward pass of a step only, unless that is not to be deferred."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(is_last or not self._defer_gradients)
        return nullcontext()


def _parts_again(module: nn.Module, inputs: Any, output: Any) -> None:
    """After a forward pass without a backward pass, which would do it: let parameters be this process's parts."""
    if not torch.is_grad_enabled():
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _replicas(strategy: str, given: int | None, dp_size: int) -> int:
    if strategy == "no_shard":
        if given not in (None, dp_size):
            raise InputError(f"no_shard holds {dp_size} copies of the model, not dp_replicate_size: {given}")
        return dp_size
    if given is not None:
        return given
    machines = dist.get_world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return machines if strategy == "hybrid_shard" else 1


def _layers(model: Any) -> list[Any]:
    """The modules that are sharded one by one: transformers' decoder (and encoder) layers.

    Raises:
        InputError: the model does not say which those are.
    """
    # of transformers' models; others are without
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise InputError(
            f"{type(model).__name__} does not say which of its modules are layers (_no_split_modules, as transformers' "
            "models have it), so FSDP2 cannot shard it layer by layer; use distributed: {_target_: ddp}"
        )
    return layers
