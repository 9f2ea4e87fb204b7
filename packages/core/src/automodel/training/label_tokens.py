"""The forward pass as far as it matters for the loss: only positions that have a label reach the output layer."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from automodel.errors import InputError
from automodel.interfaces import Batch, DocumentInputs, Loss, Parallelism
from automodel.training.collate import IGNORED_LABEL
from automodel.training.documents import is_text, laid_end_to_end
from automodel.training.output_layer import loss_in_output_layer


@dataclass(frozen=True)
class ForwardInputs:
    """What a forward pass takes.

    Args:
        arguments: of the model, on its device.
        columns: (K), those of the computed positions in which some row has a label.
        targets: (N), the labels there, shifted, without those that are -100.
        rows: (N), the row of the batch that each belongs to.
        labelled: (N), which of all B x K they are; None if they are all, as always with one row.
    """

    arguments: dict[str, Any]
    columns: Tensor
    targets: Tensor
    rows: Tensor
    labelled: Tensor | None

    def picked(self, values_BK: Tensor) -> Tensor:
        """Of values (B, K, ...) those (N, ...) of the label tokens.

        Raises:
            InputError: the model gave values of other positions than the K that it was asked for.
        """
        if values_BK.shape[1] != len(self.columns):
            raise InputError(
                f"the model gave values of {values_BK.shape[1]} positions where the {len(self.columns)} of its argument"
                " logits_to_keep were asked for; a model without that argument is asked for all"
            )
        values = values_BK.flatten(0, 1)
        return values if self.labelled is None else values.index_select(0, self.labelled)


@dataclass(frozen=True)
class LabelTokens:
    """Of the N label tokens of a micro-batch on this process: the sum of their losses, and rows (N).

    Args:
        right: (N), whether the model's first choice is the label; None if that was not asked for.
    """

    loss_sum: Tensor
    rows: Tensor
    right: Tensor | None


def forward_inputs(
    batch: Batch, device: torch.device, parallelism: Parallelism, document_inputs: DocumentInputs | None
) -> ForwardInputs:
    """This process's part of a micro-batch; its rows are laid end to end if there are `document_inputs`.

    All that looks at values is done before they are on the device, which need not be waited for.
    """
    arguments: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets_BL = shifted_targets(batch)
    arguments, targets_BL = parallelism.local_part(arguments, targets_BL)
    rows_BL = torch.arange(len(targets_BL), device=targets_BL.device)[:, None].expand_as(targets_BL)
    places_L = None
    if document_inputs is not None and is_text(arguments):
        arguments, targets_BL, rows_BL = laid_end_to_end(arguments, targets_BL, rows_BL)
        arguments, places_L = document_inputs(arguments)
    elif "position_ids" in arguments:
        # transformers keeps packed documents apart by their positions, but not when it is given a mask. The mask is of
        # padding on the right, where causal attention does not look
        arguments.pop("attention_mask", None)
    columns_K = (targets_BL != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
    targets_BK, rows_BK = targets_BL[:, columns_K].flatten(), rows_BL[:, columns_K].flatten()
    labelled_N = (targets_BK != IGNORED_LABEL).nonzero().squeeze(1)
    return ForwardInputs(
        {name: _on(device, value) for name, value in arguments.items()},
        _on(device, columns_K if places_L is None else places_L[columns_K]),
        _on(device, targets_BK[labelled_N]),
        _on(device, rows_BK[labelled_N]),
        # picking would copy what may be the largest tensor of the step
        None if len(labelled_N) == len(targets_BK) else _on(device, labelled_N),
    )


def shifted_targets(batch: Batch) -> Tensor:
    """What each position of a micro-batch is to foretell (B, L): the next one's label; -100 where padding would."""
    targets_BL = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
    if "attention_mask" in batch:
        targets_BL = targets_BL.masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
    return targets_BL


def label_loss(module: nn.Module, inputs: ForwardInputs, loss_fn: Loss, *, with_right: bool = False) -> LabelTokens:
    """The loss of the label tokens of a micro-batch.

    The output layer works on a part of them at a time, and its logits are gone before the next part's are made: all
    logits together are by far the largest tensor of a step. That needs a model whose logits are what its output layer
    returns; the others (some scale or cap them) and tensor parallelism, which has the layer in parts, make them all.

    Args:
        module: what is called in the forward pass.
        inputs: of the micro-batch.
        loss_fn: the sum of the loss over label tokens, so that the sums of parts can be added.
        with_right: also compare the model's first choices with the labels.
    """
    targets_N, rows_N = inputs.targets, inputs.rows
    if takes_logits_to_keep(module):
        forward = partial(_logits, module, inputs)
        found = loss_in_output_layer(module, forward, inputs.picked, targets_N, loss_fn, with_right=with_right)
        if found is not None:
            return LabelTokens(found[0], rows_N, found[1])
    logits = _logits(module, inputs)
    with record_function("automodel.loss"):
        logits_NV = inputs.picked(logits)
        right_N = logits_NV.argmax(dim=-1) == targets_N if with_right else None
        return LabelTokens(loss_fn(logits_NV, targets_N), rows_N, right_N)


@torch.no_grad()
def keeps_documents_apart(
    module: nn.Module,
    device: torch.device,
    parallelism: Parallelism,
    document_inputs: DocumentInputs,
    in_float32: bool,
) -> bool:
    """Whether a model gives rows the same logits without padding as with it, tried out on two of a few tokens.

    All processes call it together. In less than float32 only the rows' first tokens tell: a trained model may amplify
    what rounding does to the others until nothing is left of their logits (SmolLM2: 1.4 of their norm, between two
    kernels of PyTorch), but a first token attends to itself alone, whose weight is 1 in every kernel; and it is what
    changes most where it sees another row.

    Args:
        module: what is called in the forward pass.
        device: that it computes on.
        parallelism: of the run.
        document_inputs: how the model is told of documents.
        in_float32: nothing is computed in less.
    """
    ids = torch.tensor([[8, 7, 6, 5, 0, 0, 0], [2, 3, 4, 5, 6, 7, 8]])  # which the smallest vocabularies have
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    rows = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED_LABEL)}
    was_training = module.training
    module.eval()
    padded_inputs, inputs = (forward_inputs(rows, device, parallelism, told) for told in (None, document_inputs))
    try:
        with torch.compiler.set_stance("force_eager"):  # so few tokens are nothing to compile for
            padded = label_logits(module, padded_inputs).float()  # what fails here is no matter of documents
            try:
                without = label_logits(module, inputs).float()
            except torch.OutOfMemoryError:
                raise
            except (
                AttributeError,
                InputError,
                LookupError,
                RuntimeError,
                TypeError,
                ValueError,
            ):  # as layers fail that do not know of documents
                return False
    finally:
        module.train(was_training)
    if not padded.any():
        return False  # which tells nothing
    tokens, tolerance = (slice(None), 1e-3) if in_float32 else ([0, 3], 0.05)  # of 3 and 6 that foretell one
    return bool((without - padded)[tokens].abs().max() <= tolerance * padded.abs().max())


def label_logits(module: nn.Module, inputs: ForwardInputs) -> Tensor:
    """All logits (N, V) of the label tokens of a micro-batch."""
    return inputs.picked(_logits(module, inputs))


def _logits(module: nn.Module, inputs: ForwardInputs) -> Tensor:
    """Those (B, K, V) of the columns with labels; a model that cannot leave others out has computed them all."""
    if takes_logits_to_keep(module):
        kept: Tensor = module(**inputs.arguments, logits_to_keep=inputs.columns, use_cache=False).logits
        return kept
    logits: Tensor = module(**inputs.arguments, use_cache=False).logits
    return logits[:, inputs.columns]


def _on(device: torch.device, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if device.type == "cuda" and value.is_cpu:  # from other memory it is copied while the host waits
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def takes_logits_to_keep(module: nn.Module) -> bool:
    """Whether the model computes only the logits it is asked for, as transformers' causal language models do."""
    return "logits_to_keep" in inspect.signature(unwrapped(module).forward).parameters


def unwrapped(module: nn.Module) -> Any:
    """The model itself, without what a parallelism and peft have wrapped it in; both pass every argument on."""
    model: Any = module
    if hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
