"""`automodel train --dry-run`: build everything and show one batch with what carries loss, without training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from automodel import plugins
from automodel.interfaces import Batch
from automodel.parallel.groups import by_first, group_size
from automodel.parallel.process_group import world_size
from automodel.recipe import Recipe
from automodel.training.build import build_checkpointer, build_data, build_parts, processes
from automodel.training.collate import IGNORED_LABEL

_REPEATED = 4


def dry_run(recipe: Recipe, resume: str = "auto") -> str:
    """Build a checked recipe's parts and describe them and the first micro-batch; nothing is written or updated.

    Raises:
        InputError: anything that would keep the run from starting.
    """
    with processes(recipe) as device:
        checkpointer = build_checkpointer(recipe)
        data = build_data(recipe, device)
        parts = build_parts(recipe, data, checkpointer, plugins.installed().manager, device)
        start = by_first(lambda: checkpointer.find(resume))
        num_shares = group_size(parts.parallelism.dp_group)
    batch = next(iter(data.loader.micro_batches(epoch=0, start=0)))
    samples_per_step = data.loader.samples_per_turn * parts.micro_batches_per_step
    return "\n".join(
        [
            f"model        {parts.run.name}: {parts.run.num_trainable_parameters:,} of "
            f"{parts.run.num_parameters:,} parameters train, on {parts.device}",
            f"optimizer    {type(parts.optimizer).__name__}, lr {parts.optimizer.defaults['lr']}",
            f"processes    {world_size()}, {num_shares} of them with different samples",
            f"steps        {parts.num_steps or 'until the data ends'}, {samples_per_step} samples each "
            f"({parts.micro_batches_per_step} micro-batches)",
            f"checkpoints  {checkpointer.directory if checkpointer.enabled else 'none'}",
            f"starts       {f'from {start}' if start else 'anew'}",
            "first micro-batch, decoded (> carries loss):",
            *describe_batch(batch, data.processor),
        ]
    )


def describe_batch(batch: Batch, processor: Any) -> list[str]:
    """A batch's rows as text, in runs of tokens with (`>`) and without loss."""
    mask = batch.get("attention_mask")
    lines = []
    for row, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        length = int(mask[row].sum()) if mask is not None else len(ids)
        num_labels = sum(label != IGNORED_LABEL for label in labels[1:length])
        padding = f", {len(ids) - length} of padding" if len(ids) > length else ""
        lines.append(f"row {row}: {length} tokens, {num_labels} with loss{padding}")
        lines += _segments(ids[:length], labels[:length], processor)
    return lines


def _segments(ids: Sequence[int], labels: Sequence[int], processor: Any) -> list[str]:
    runs = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED_LABEL)
    return [
        f"  {'>' if labelled else ' '} {_decoded([token for token, _ in run], processor)!r}" for labelled, run in runs
    ]


def _decoded(ids: Sequence[int], processor: Any) -> str:
    """The text of tokens; one that stands several times in a row, as those of an image do, is written once."""
    text, begun = "", []
    for token, same in groupby(ids):
        count = len(list(same))
        if count < _REPEATED:
            begun += [token] * count
            continue
        text += f"{processor.decode(begun)}{processor.decode([token])} x {count} "
        begun = []
    return text + processor.decode(begun)
