"""From samples to a micro-batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from automodel.errors import InputError
from automodel.interfaces import Batch, Collate, Sample

IGNORED_LABEL = -100


def pad(processor: Any, pad_to_multiple_of: int = 1) -> Collate:
    """Rows padded on the right to the longest of the micro-batch.

    Padding is told by `attention_mask`, never by the token id: a pad token may also end a text.

    Args:
        processor: the tokenizer; its `pad_token_id` fills the rows.
        pad_to_multiple_of: round the length up to a multiple of this (tensor cores like 8 or 16).
    """
    if pad_to_multiple_of < 1:
        raise InputError(f"pad_to_multiple_of must be at least 1, not {pad_to_multiple_of}")
    return partial(_padded, pad_token_id=processor.pad_token_id, multiple=pad_to_multiple_of)


def _padded(samples: Sequence[Sample], pad_token_id: int, multiple: int) -> Batch:
    lengths = [len(sample["input_ids"]) for sample in samples]
    width = -(-max(lengths) // multiple) * multiple
    input_ids = np.full((len(samples), width), pad_token_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED_LABEL)
    attention_mask = np.zeros_like(input_ids)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        input_ids[row, :length] = sample["input_ids"]
        labels[row, :length] = sample["labels"]
        attention_mask[row, :length] = 1
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    if "position_ids" in samples[0]:  # of packs
        arrays["position_ids"] = position_ids = np.zeros_like(input_ids)
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            position_ids[row, :length] = sample["position_ids"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
