"""Validation: loss, token accuracy and exact match on held-out rows, from one forward pass."""

from __future__ import annotations

import torch
from torch import nn

from automodel.errors import InputError
from automodel.interfaces import DocumentInputs, Loader, Loss, Parallelism
from automodel.parallel.groups import summed
from automodel.training.label_tokens import forward_inputs, label_loss
from automodel.training.options import TrainingOptions
from automodel.training.step_scheduler import turns

METRICS = ("val_loss", "val_token_accuracy", "val_exact_match")
"""What checkpoints can be compared by."""


@torch.no_grad()
def validate(
    module: nn.Module,
    loader: Loader,
    loss_fn: Loss,
    options: TrainingOptions,
    device: torch.device,
    parallelism: Parallelism,
    document_inputs: DocumentInputs | None = None,
) -> dict[str, float]:
    """Return the metrics of one pass of all processes over `loader`, named as in docs/training.md.

    `val_exact_match` is the share of rows whose label tokens are all the model's first choice. Given a right prefix
    greedy decoding takes just these tokens, so it is the share of rows that greedy generation answers letter by
    letter, without generating.

    Raises:
        InputError: no row has a label.
    """
    was_training = module.training
    module.eval()
    dp_group, cp_group = parallelism.dp_group, parallelism.cp_group
    sums = torch.zeros(5, dtype=torch.float64)  # loss, label tokens, right ones, rows with a label, right ones
    try:
        for [batch] in turns(loader.micro_batches(epoch=0, start=0), 1, dp_group):
            inputs = forward_inputs(batch, device, parallelism, document_inputs)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.mixed_precision == "bf16"):
                found = label_loss(module, inputs, loss_fn, with_right=True)
            num_rows = len(batch["labels"])
            counts = [torch.bincount(rows, minlength=num_rows) for rows in (found.rows, found.rows[found.right])]
            labels_B, right_B = summed(torch.stack(counts).cpu(), cp_group)
            loss_sum = summed(found.loss_sum.detach().cpu().double(), cp_group)
            whole_B = (labels_B > 0) & (labels_B == right_B)
            numbers = (loss_sum, labels_B.sum(), right_B.sum(), (labels_B > 0).sum(), whole_B.sum())
            sums += torch.stack([number.double() for number in numbers])
    finally:
        module.train(was_training)
    loss_sum, num_label_tokens, num_right_tokens, num_rows, num_right_rows = summed(sums, dp_group).tolist()
    if not num_label_tokens:
        raise InputError("no row of the validation data set has a label")
    return {
        "val_loss": loss_sum / num_label_tokens,
        "val_token_accuracy": num_right_tokens / num_label_tokens,
        "val_exact_match": num_right_rows / num_rows,
        "val_rows": num_rows,
    }
