"""The default parallelism: every process holds the whole model. In a run of one process, nothing at all."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from automodel.errors import InputError
from automodel.interfaces import Batch


class DataParallel:
    """Every process trains on its own samples with a whole copy of the model (torch DistributedDataParallel).

    Args:
        device: this process's.
        bucket_cap_mb: gradients are averaged in pieces of about so many MB (2^20 bytes) while the backward pass runs;
            null is torch's 25.
        find_unused_parameters: look for parameters that a forward pass leaves out, at some cost in every step. Some
            vision towers (LLaVA's) have such; a run without this says so in its second step.
    """

    def __init__(
        self, device: torch.device, bucket_cap_mb: float | None = None, find_unused_parameters: bool = False
    ) -> None:
        self.dp_group: dist.ProcessGroup | None = dist.group.WORLD if dist.is_initialized() else None
        self.cp_group: dist.ProcessGroup | None = None
        self.splits_positions = False
        self.shards_parameters = False
        self.parameter_device = device
        self._device, self._bucket_cap_mb, self._find_unused = device, bucket_cap_mb, find_unused_parameters

    def parallelize(self, module: nn.Module) -> nn.Module:
        """Wrap the model; parameters are those of the first process from now on."""
        if self.dp_group is None:
            return module
        return _DistributedDataParallel(
            module,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            bucket_cap_mb=self._bucket_cap_mb,
            find_unused_parameters=self._find_unused,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )

    def shard_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The same: every process steps the whole model."""
        return optimizer

    def local_part(self, inputs: Batch, targets_BL: Tensor) -> tuple[Batch, Tensor]:
        """All positions."""
        return inputs, targets_BL

    def micro_batch(self, module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Average gradients in the last backward pass of a step only."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not is_last else nullcontext()


class _DistributedDataParallel(DistributedDataParallel):
    """torch's, with a message for people where parameters got no gradient."""

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        try:
            return super().forward(*inputs, **kwargs)
        except RuntimeError as error:
            if "Expected to have finished reduction in the prior iteration" not in str(error):
                raise
            raise InputError(
                "some parameters of the model take no part in its loss, and DDP waits for their gradients: set "
                "distributed.find_unused_parameters: true, freeze them, or use distributed: {_target_: fsdp2}"
            ) from error
