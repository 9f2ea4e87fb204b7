"""How many micro-batches make a step, how many steps a run has, and after which ones it validates and saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from torch.distributed import ProcessGroup

from automodel.errors import InputError
from automodel.interfaces import Batch, Loader
from automodel.parallel.groups import gathered, largest
from automodel.training.collate import IGNORED_LABEL


@dataclass(frozen=True)
class StepScheduler:
    """Counts everything in optimizer steps.

    Args:
        grad_acc_steps: micro-batches of each process in one optimizer step.
        global_batch_size: samples of all processes in one optimizer step, instead of grad_acc_steps.
        local_batch_size: samples in one micro-batch; the same as dataloader.batch_size.
        max_steps: optimizer steps of the run; null runs num_epochs.
        num_epochs: passes over the data; null is one pass, or as many as max_steps needs.
        val_every_steps: validate after every so many steps, and after the last; null validates after the last only.
        val_at_start: validate before the first step as well.
        ckpt_every_steps: save after every so many steps, and after the last; null saves after the last only.
    """

    grad_acc_steps: int | None = None
    global_batch_size: int | None = None
    local_batch_size: int | None = None
    max_steps: int | None = None
    num_epochs: int | None = None
    val_every_steps: int | None = None
    val_at_start: bool = False
    ckpt_every_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not isinstance(value, bool) and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")

    def micro_batches_per_step(self, samples_per_turn: int) -> int:
        """Micro-batches of each process in one step.

        Args:
            samples_per_turn: samples in one micro-batch of every process together.

        Raises:
            InputError: global_batch_size is no multiple of it, or contradicts grad_acc_steps.
        """
        if self.global_batch_size is None:
            return self.grad_acc_steps or 1
        steps, rest = divmod(self.global_batch_size, samples_per_turn)
        if rest or (self.grad_acc_steps and self.grad_acc_steps != steps):
            raise InputError(
                f"global_batch_size: {self.global_batch_size} must be batch_size x processes ({samples_per_turn}) "
                f"times grad_acc_steps{f' ({self.grad_acc_steps})' if self.grad_acc_steps else ', a whole number'}"
            )
        return steps

    def num_steps(self, micro_batches_per_step: int, micro_batches_per_epoch: int | None) -> int | None:
        """Optimizer steps of the run, or None when the length of the data is not known and max_steps is not set."""
        if micro_batches_per_epoch is None:
            return self.max_steps
        if self.max_steps is not None and self.num_epochs is None:
            return self.max_steps
        steps = (self.num_epochs or 1) * -(-micro_batches_per_epoch // micro_batches_per_step)
        return min(steps, self.max_steps or steps)

    def epochs(self) -> int | None:
        """Passes over the data, or None for as many as max_steps needs."""
        return self.num_epochs or (None if self.max_steps else 1)


@dataclass
class Progress:
    """Where a run is. `position` counts samples of all processes in the epoch."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    num_label_tokens: int = 0
    num_skipped_steps: int = 0


def global_batches(
    loader: Loader,
    progress: Progress,
    micro_batches_per_step: int,
    num_epochs: int | None,
    dp_group: ProcessGroup | None = None,
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step from where `progress` stands, and move its epoch and position on.

    Raises:
        InputError: a whole epoch gives no micro-batch.
    """
    while num_epochs is None or progress.epoch < num_epochs:
        iterator = loader.micro_batches(progress.epoch, progress.position)
        whole_epoch, empty = progress.position == 0, True
        for micro_batches in turns(iterator, micro_batches_per_step, dp_group):
            empty = False
            progress.position += micro_batches_per_step * loader.samples_per_turn
            yield micro_batches
        if whole_epoch and empty:
            raise InputError("the data loader gave no micro-batch in a whole epoch")
        progress.epoch += 1
        progress.position = 0


def turns(iterator: Iterator[Batch], num: int, dp_group: ProcessGroup | None) -> Iterator[list[Batch]]:
    """Yield up to `num` micro-batches at a time, on every process of the group equally many, until all have ended.

    The others wait in collectives for a process whose data end sooner. It goes on with micro-batches without loss.
    """
    last: Batch | None = None
    while True:
        own = list(islice(iterator, num))
        last = own[-1] if own else last
        if dp_group is None:
            most = len(own)
        else:
            most, without = largest(torch.tensor([len(own), last is None]), dp_group).tolist()
            if most and without:  # a process has not seen any data yet
                last = next(batch for batch in gathered(last, dp_group) if batch is not None)
        if not most:
            return
        if len(own) < most:
            assert last is not None
            without_loss = {**last, "labels": torch.full_like(last["labels"], IGNORED_LABEL)}
            own += [without_loss] * (most - len(own))
        yield own
