"""One optimizer step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from automodel.errors import InputError
from automodel.interfaces import Batch, DocumentInputs, Loss, Parallelism
from automodel.parallel.gradients import clipping_divisor, divide_gradients, grad_norm
from automodel.parallel.groups import group_size, summed
from automodel.training.collate import IGNORED_LABEL
from automodel.training.label_tokens import forward_inputs, label_loss, shifted_targets
from automodel.training.optimizers import takes_decisions, update_where
from automodel.training.options import TrainingOptions


@dataclass(frozen=True)
class StepResult:
    """What a step did: its loss per label token, and the gradient's L2 norm before clipping; of all processes.

    Both are float64 of no dimension, which an accelerator may be still at work on: reading them waits for it. Where one
    is not finite, nothing was updated.
    """

    loss: Tensor
    grad_norm: Tensor
    num_label_tokens: int
    num_tokens: int


def train_step(
    module: nn.Module,
    micro_batches: Sequence[Batch],
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
    device: torch.device,
    parallelism: Parallelism,
    document_inputs: DocumentInputs | None = None,
) -> StepResult:
    """Train on one global batch, of which this process has `micro_batches`; the others have as many.

    The loss is the sum over its label tokens divided by their number, so how the batch is split into micro-batches
    and processes does not matter. An accelerator is not waited for, if the optimizer can leave out an update by itself.

    Raises:
        InputError: no token of the batch carries loss.
    """
    dp_group, cp_group = parallelism.dp_group, parallelism.cp_group
    num_label_tokens = sum(int((shifted_targets(batch) != IGNORED_LABEL).sum()) for batch in micro_batches)
    num_tokens = sum(int(batch["attention_mask"].sum()) for batch in micro_batches if "attention_mask" in batch)
    num_label_tokens, num_tokens = summed(torch.tensor([num_label_tokens, num_tokens]), dp_group).tolist()
    if not num_label_tokens:
        raise InputError("every label of a whole batch is masked (-100): there is nothing to learn from it")
    is_mixed = options.mixed_precision == "bf16"
    autocast = torch.autocast(device.type, torch.bfloat16) if is_mixed else nullcontext()
    losses = []
    num_averaged = group_size(dp_group) * group_size(cp_group)  # gradients are averaged, and their sum is wanted
    for number, batch in enumerate(micro_batches, start=1):
        inputs = forward_inputs(batch, device, parallelism, document_inputs)
        with parallelism.micro_batch(module, is_last=number == len(micro_batches)):
            with autocast, record_function("automodel.forward"):
                loss = label_loss(module, inputs, loss_fn).loss_sum
            with record_function("automodel.backward"):
                (loss * (num_averaged / num_label_tokens)).backward()
        losses.append(loss.detach())
    losses_M = torch.stack(losses)
    own_loss_sum = (losses_M.cpu() if losses_M.is_mps else losses_M).double().sum()  # MPS has no float64
    loss = summed(own_loss_sum, cp_group, dp_group) / num_label_tokens
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with record_function("automodel.optimizer"):
        norm = grad_norm(parameters)
        is_finite = loss.to(norm.device).isfinite() & norm.isfinite()
        divisor = None if options.max_grad_norm is None else clipping_divisor(norm, options.max_grad_norm)
        if takes_decisions(optimizer, norm.device):
            update_where(is_finite, optimizer, divisor)
        elif bool(is_finite):
            if divisor is not None and divisor > 1:
                divide_gradients(parameters, float(divisor))
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm.to(loss.device), num_label_tokens, num_tokens)
