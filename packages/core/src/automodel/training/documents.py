"""Rows laid end to end: a micro-batch without padding, in which the model attends within each document only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from automodel.training.collate import IGNORED_LABEL


def is_text(arguments: dict[str, Any]) -> bool:
    """Whether these arguments of a model are text and nothing else."""
    return arguments.keys() <= {"input_ids", "attention_mask", "position_ids"}


def laid_end_to_end(
    arguments: dict[str, Any], targets_BL: Tensor, rows_BL: Tensor
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """The T tokens of a micro-batch in one row: arguments, targets and rows, all (1, T).

    A row is one document, or several if it has `position_ids` that begin anew. What comes after the last label of a
    document, no loss depends on: it is left out, with documents that have no label. Documents are told to the model as
    transformers' variable-length attention takes them: `position_ids`, which begin with 0 in each; `cu_seq_lens_q` and
    `cu_seq_lens_k` (int32, the first position of each, and T), and `max_length_q` and `max_length_k`.
    """
    mask_BL = arguments["attention_mask"].bool() if "attention_mask" in arguments else torch.ones_like(rows_BL).bool()
    positions_BL = arguments["position_ids"] if "position_ids" in arguments else mask_BL.cumsum(dim=1) - 1
    mask_BL = mask_BL.masked_scatter(mask_BL, _is_learnt_from(positions_BL[mask_BL], targets_BL[mask_BL]))
    positions_T = positions_BL[mask_BL]
    first_D = (positions_T == 0).nonzero().squeeze(1)
    bounds = F.pad(first_D, (0, 1), value=len(positions_T)).to(torch.int32)
    longest = int(bounds.diff().max())
    flat = {
        "input_ids": arguments["input_ids"][mask_BL][None],
        "position_ids": positions_T[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return flat, targets_BL[mask_BL][None], rows_BL[mask_BL][None]


def _is_learnt_from(positions_T: Tensor, targets_T: Tensor) -> Tensor:
    """Whether a label of its document comes at or after each position; the first one is if none is."""
    starts = positions_T == 0
    document_T = starts.cumsum(dim=0) - 1
    last_D = torch.full((int(starts.sum()),), -1)
    labelled = (targets_T != IGNORED_LABEL).nonzero().squeeze(1)
    last_D = last_D.scatter_reduce(0, document_T[labelled], labelled, "amax")
    kept_T = torch.arange(len(positions_T)) <= last_D[document_T]
    kept_T[0] |= not kept_T.any()  # a forward pass needs something
    return kept_T
