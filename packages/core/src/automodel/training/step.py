"""One optimizer step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import record_function

from automodel.errors import InputError, RunError
from automodel.interfaces import Batch, Loss, Parallelism
from automodel.parallel.gradients import clip_grad_norm
from automodel.parallel.groups import group_size, summed
from automodel.training.collate import IGNORED_LABEL
from automodel.training.label_tokens import forward_inputs, label_loss, shifted_targets
from automodel.training.options import TrainingOptions


@dataclass(frozen=True)
class StepResult:
    """What a step did: its loss per label token, the gradient's L2 norm before clipping, and whether it counted.

    Losses and tokens are those of all processes.
    """

    loss: float
    grad_norm: float
    num_label_tokens: int
    num_tokens: int
    updated: bool


def train_step(
    module: nn.Module,
    micro_batches: Sequence[Batch],
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
    device: torch.device,
    parallelism: Parallelism,
) -> StepResult:
    """Train on one global batch, of which this process has `micro_batches`; the others have as many.

    The loss is the sum over its label tokens divided by their number, so how the batch is split into micro-batches
    and processes does not matter.

    Raises:
        InputError: no token of the batch carries loss.
        RunError: the loss or the gradient is not finite and `on_nonfinite` is `stop`.
    """
    dp_group, cp_group = parallelism.dp_group, parallelism.cp_group
    num_label_tokens = sum(int((shifted_targets(batch) != IGNORED_LABEL).sum()) for batch in micro_batches)
    num_tokens = sum(int(batch["attention_mask"].sum()) for batch in micro_batches if "attention_mask" in batch)
    num_label_tokens, num_tokens = summed(torch.tensor([num_label_tokens, num_tokens]), dp_group).tolist()
    if not num_label_tokens:
        raise InputError("every label of a whole batch is masked (-100): there is nothing to learn from it")
    losses = []
    num_averaged = group_size(dp_group) * group_size(cp_group)  # gradients are averaged, and their sum is wanted
    for number, batch in enumerate(micro_batches, start=1):
        inputs = forward_inputs(batch, device, parallelism, bool(options.padding_free))
        with parallelism.micro_batch(is_last=number == len(micro_batches)):
            mixed = torch.autocast(device.type, torch.bfloat16, enabled=options.mixed_precision == "bf16")
            with mixed, record_function("automodel.forward"):
                loss = label_loss(module, inputs, loss_fn).loss_sum
            with record_function("automodel.backward"):
                (loss * (num_averaged / num_label_tokens)).backward()
        losses.append(loss.detach())  # reading it here would make an accelerator wait for each micro-batch
    own_loss_sum = torch.tensor(sum(loss.item() for loss in losses), dtype=torch.float64)
    loss_sum = float(summed(own_loss_sum, cp_group, dp_group))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with record_function("automodel.optimizer"):
        norm = clip_grad_norm(parameters, options.max_grad_norm or math.inf)
    finite = math.isfinite(loss_sum) and math.isfinite(norm)
    if not finite and options.on_nonfinite == "stop":
        raise RunError(
            f"the loss is {loss_sum / num_label_tokens} and the gradient norm {norm}: the run stops, as "
            "training.on_nonfinite says; a lower learning rate or fp32 may help"
        )
    with record_function("automodel.optimizer"):
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_sum / num_label_tokens, norm, num_label_tokens, num_tokens, updated=finite)
