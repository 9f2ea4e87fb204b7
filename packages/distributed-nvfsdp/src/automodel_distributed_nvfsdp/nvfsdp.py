"""The provider `nvfsdp`: NVIDIA's Megatron-FSDP, the successor of nvFSDP, on CUDA devices."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.distributed as dist
from automodel import InputError
from automodel.interfaces import Batch
from automodel.notices import notice
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    from megatron_fsdp import MegatronFSDP, MixedPrecisionPolicy, fully_shard_model, fully_shard_optimizer
    from megatron_fsdp.uneven_dtensor import update_uneven_dtensor_chunk_metadata


class NVFSDPManager:
    """NVIDIA's Megatron-FSDP (ZeRO 1 to 3, and hybrid). In a run of one process it does nothing.

    Each process loads the whole model onto its device before it keeps its part.

    Args:
        device: this process's; a CUDA device.
        dp_size: processes that train on different samples: all of them, or null for that.
        dp_replicate_size: groups that hold a copy each (HSDP); null is 1.
        tp_size: only 1; tensor parallelism is fsdp2's.
        cp_size: only 1; context parallelism is fsdp2's.
        sequence_parallel: has no effect without tensor parallelism, as in NeMo.
        use_hf_tp_plan: accepted for NeMo's recipes.
        backend: accepted for NeMo's recipes; `dist_env.backend` decides.
        world_size: checked, if given, against the number of processes.
        nvfsdp_unit_modules: the classes of the modules that are gathered and freed one by one, by name or dotted path;
            null is the model's layers, as transformers lists them.
        data_parallel_sharding_strategy: what is shared out: nothing, the optimizer's state, gradients as well, or
            parameters as well.
        init_nvfsdp_with_meta_device: has no effect: the library makes up initial values, and these are pretrained ones.
        grad_reduce_in_fp32: average gradients in float32, whatever the parameters' data type; with
            preserve_fp32_weights they are added up over micro-batches in float32, too.
        preserve_fp32_weights: the optimizer steps a float32 copy of trainable parameters of another data type. It is
            what checkpoints hold, `model/` included.
        overlap_grad_reduce: always so; false gets a note.
        overlap_param_gather: always so; false gets a note.
        check_for_nan_in_grad: the gradient's norm is checked in any case, and `training.on_nonfinite` says what
            follows; false gets a note.
        average_in_collective: let NCCL divide by the number of processes instead of dividing before.
        disable_bucketing: do not split the parameters outside units into buckets.
        calculate_per_token_loss: the loss is always that of label tokens of the whole step; true gets a note.
        keep_fp8_transpose_cache_when_using_custom_fsdp: keep the transposes of FP8 parameters between uses.
        nccl_ub: register communication buffers with NCCL; needs megatron-core or apex, and sets fsdp_double_buffer.
        fsdp_double_buffer: two buffers that stay, in place of memory taken for each communication.

    Raises:
        InputError: the device is no CUDA device, the sizes do not go with the number of processes, or what is asked for
            is not there.
    """

    def __init__(
        self,
        device: torch.device,
        dp_size: int | None = None,
        dp_replicate_size: int | None = None,
        tp_size: int = 1,
        cp_size: int = 1,
        sequence_parallel: bool = False,
        use_hf_tp_plan: bool = True,
        backend: str | None = None,
        world_size: int | None = None,
        nvfsdp_unit_modules: list[str] | None = None,
        data_parallel_sharding_strategy: Literal[
            "no_shard", "optim", "optim_grads", "optim_grads_params"
        ] = "optim_grads_params",
        init_nvfsdp_with_meta_device: bool = False,
        grad_reduce_in_fp32: bool = False,
        preserve_fp32_weights: bool = False,
        overlap_grad_reduce: bool = True,
        overlap_param_gather: bool = True,
        check_for_nan_in_grad: bool = True,
        average_in_collective: bool = False,
        disable_bucketing: bool = False,
        calculate_per_token_loss: bool = False,
        keep_fp8_transpose_cache_when_using_custom_fsdp: bool = False,
        nccl_ub: bool = False,
        fsdp_double_buffer: bool = False,
    ) -> None:
        need_cuda(device)
        self.dp_group: dist.ProcessGroup | None = dist.group.WORLD if dist.is_initialized() else None
        self.cp_group: dist.ProcessGroup | None = None
        self.splits_positions = False
        self.shards_parameters = False  # not while the model is loaded: see init_nvfsdp_with_meta_device
        self.parameter_device = device
        self._unit_modules = nvfsdp_unit_modules
        self._reduce_in_fp32, self._preserve_fp32 = grad_reduce_in_fp32, preserve_fp32_weights
        for name, size in (("tp_size", tp_size), ("cp_size", cp_size)):
            if size != 1:
                raise InputError(
                    f"nvfsdp takes no {name}: {size}; use distributed: {{_target_: fsdp2, {name}: {size}}}"
                )
        if nccl_ub and not (find_spec("megatron") or find_spec("apex")):
            raise InputError("nccl_ub needs NCCL's allocator of megatron-core or apex, and neither is installed")
        actual = dist.get_world_size() if dist.is_initialized() else 1
        if world_size not in (None, actual):
            raise InputError(f"world_size is {world_size}, but this run has {actual} processes; leave it out")
        if dp_size not in (None, actual):
            raise InputError(f"dp_size is {dp_size}, but this run has {actual} processes; leave it out")
        replicas = 1 if dp_replicate_size is None else dp_replicate_size
        if replicas < 1 or actual % replicas:
            raise InputError(f"dp_replicate_size {replicas} does not divide the {actual} processes of this run")
        if replicas > 1 and data_parallel_sharding_strategy == "no_shard":
            raise InputError("no_shard holds a copy in every process; leave dp_replicate_size out")
        if replicas == actual > 1:
            # megatron-fsdp 0.6.1, measured: after several micro-batches the gradient's norm is wrong by 40%
            raise InputError(
                f"dp_replicate_size {replicas} leaves each copy to one process; "
                "data_parallel_sharding_strategy: no_shard does that"
            )
        if backend is not None and dist.is_initialized() and backend not in dist.get_backend_config():
            notice(f"distributed.backend: {backend} has no effect; dist_env.backend chooses it")
        in_any_case = "the gradient's norm is checked in any case; training.on_nonfinite says what follows"
        for asked, is_asked, instead in (
            ("sequence_parallel: true", sequence_parallel, "nvfsdp has no tensor parallelism"),
            (
                "init_nvfsdp_with_meta_device: true",
                init_nvfsdp_with_meta_device,
                "each process loads the whole model and then keeps its part",
            ),
            ("overlap_grad_reduce: false", not overlap_grad_reduce, "gradients are reduced while others are computed"),
            ("overlap_param_gather: false", not overlap_param_gather, "parameters are gathered ahead of their use"),
            ("check_for_nan_in_grad: false", not check_for_nan_in_grad, in_any_case),
            (
                "calculate_per_token_loss: true",
                calculate_per_token_loss,
                "the loss is that of the label tokens of the whole step in any case",
            ),
        ):
            if is_asked:
                notice(f"{asked} has no effect: {instead}")
        if not dist.is_initialized():
            return
        axes = ("replicate", "shard", "tp")
        mesh = init_device_mesh(device.type, (replicas, actual // replicas, 1), mesh_dim_names=axes)
        hybrid: dict[str, Any] = {}
        if replicas > 1:
            group = self.dp_group
            hybrid = {"dp_outer_dim": "replicate", "hybrid_fsdp_group": group, "hybrid_fsdp_expt_group": group}
        else:
            mesh = mesh["shard", "tp"]
        self._sharding: dict[str, Any] = {
            "device_mesh": mesh,
            "expt_device_mesh": mesh,  # experts are shared out as all else is; average_in_collective needs it as well
            "dp_shard_dim": "shard",
            "tp_dim": "tp",
            **hybrid,
            "zero_dp_strategy": data_parallel_sharding_strategy,
            "device": device,
            "sync_model_each_microbatch": False,  # see micro_batch
            "average_in_collective": average_in_collective,
            "disable_bucketing": disable_bucketing,
            "keep_fp8_transpose_cache": keep_fp8_transpose_cache_when_using_custom_fsdp,
            "nccl_ub": nccl_ub,
            "fsdp_double_buffer": fsdp_double_buffer,
        }

    def parallelize(self, module: nn.Module) -> nn.Module:
        """Share the model out, in place, and return the wrapper that gathers it for its forward pass.

        Raises:
            InputError: the model has no modules of the classes to gather by.
        """
        if self.dp_group is None:
            return module
        units = _units(module, self._unit_modules)
        policy = self._precision(module)
        model: Any = fully_shard_model(module, fsdp_unit_modules=units, mixed_precision_policy=policy, **self._sharding)
        model.model_auto_sync = True
        model.register_forward_hook(_parts_again)
        for parameter in module.parameters():
            # for checkpoints: parts are whole rows, but not as many on each process as torch would give it
            update_uneven_dtensor_chunk_metadata(parameter)
        return model

    def shard_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The same, made to tell the model of its steps."""
        if self.dp_group is None:
            return optimizer
        # megatron-fsdp 0.6.1 makes a step on gradients of zero to create the state
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0
        fully_shard_optimizer(optimizer)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.state.clear()
        return optimizer

    def local_part(self, inputs: Batch, targets_BL: Tensor) -> tuple[Batch, Tensor]:
        """All positions."""
        return inputs, targets_BL

    def micro_batch(self, module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Finish the averaging of gradients in the last backward pass of a step only."""
        if isinstance(module, MegatronFSDP):
            # not set_model_auto_sync(): it logs a warning every time, to zero the gradients after a step, as core does
            module.model_auto_sync = is_last
        return nullcontext()

    def _precision(self, module: nn.Module) -> MixedPrecisionPolicy:
        in_fp32 = all(parameter.dtype == torch.float32 for parameter in module.parameters() if parameter.requires_grad)
        if in_fp32:
            return MixedPrecisionPolicy(main_params_dtype=None)
        reduce = torch.float32 if self._reduce_in_fp32 else None
        if not self._preserve_fp32:
            return MixedPrecisionPolicy(main_params_dtype=None, grad_comm_dtype=reduce)
        return MixedPrecisionPolicy(torch.float32, main_grads_dtype=reduce, grad_comm_dtype=reduce)


def need_cuda(device: torch.device) -> None:
    """Refuse any other device: Megatron-FSDP schedules its communication by CUDA streams and events.

    Raises:
        InputError: the device is no CUDA device.
    """
    if device.type != "cuda":
        raise InputError(
            f"nvfsdp needs CUDA devices, and this run is on {device}; "
            "fsdp2 (the same sharding) and ddp run on any device"
        )


def _parts_again(model: Any, inputs: Any, output: Any) -> None:
    """After a forward pass without a backward pass, which would do it: let parameters be this process's parts."""
    if not torch.is_grad_enabled():
        with warnings.catch_warnings():  # an output matrix tied to the embedding asks for the first layers once more
            warnings.filterwarnings("ignore", message="There are still pending all-gather tasks")
            model.synchronize_param_gather()


def _units(module: nn.Module, names: list[str] | None) -> list[type[nn.Module]]:
    """The classes of the modules that are gathered one by one.

    Raises:
        InputError: the model has none.
    """
    model: Any = module
    if hasattr(module, "get_base_model"):  # peft wraps the model
        model = model.get_base_model()
    # of transformers' models; others are without
    wanted = set(getattr(model, "_no_split_modules", None) or ()) if names is None else set(names)
    classes = {type(part) for part in model.modules()}
    found = {one: {one.__name__, f"{one.__module__}.{one.__qualname__}"} & wanted for one in classes}
    missing = wanted - set().union(*found.values())
    if names is not None and missing:
        there = sorted({one.__name__ for one in classes if not one.__module__.startswith("torch.")})
        raise InputError(
            f"nvfsdp_unit_modules: {type(model).__name__} has no {', '.join(sorted(missing))}; it has "
            f"{', '.join(there)}"
        )
    units = [one for one, matched in found.items() if matched]
    if not units:
        raise InputError(
            f"{type(model).__name__} does not say which of its modules are layers (_no_split_modules, as transformers' "
            "models have it); name their classes in distributed.nvfsdp_unit_modules"
        )
    return sorted(units, key=lambda one: one.__name__)
