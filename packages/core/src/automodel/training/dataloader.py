"""The data loader: which samples come when, independent of processes and workers, and exact after a resume."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import IterableDataset

from automodel.errors import InputError
from automodel.interfaces import Batch, Collate, CollatingDataset
from automodel.notices import notice
from automodel.training.collate import pad
from automodel.training.data_workers import end_with_parent, loss_told, without_main, worker_context
from automodel.training.packing import sample_lengths

_SAMPLES_GROUPED = 1024  # few enough that the order stays random, and independent of batch size and processes


class DataLoader:
    """Micro-batches of one rank, in an order that depends on the seed and the epoch only.

    A map-style data set resumes at its sample position, with any number of workers and processes. An iterable one
    resumes through torchdata's StatefulDataLoader, with the number of workers it was saved with.

    Args:
        dataset: what `__getitem__` and `__len__`, or `__iter__`, give samples of.
        processor: the tokenizer or processor, for the default collate function.
        batch_size: samples in one micro-batch of one process.
        shuffle: a new order each epoch; null shuffles unless the data set is iterable or `sampler` says otherwise.
        sampler: `distributed` and `random` shuffle, `sequential` does not; every one shares the samples among the
            processes.
        collate_fn: makes a micro-batch of samples; null is the data set's own, or pads text (`pad`).
        num_workers: processes that load samples; 0 loads in the training process.
        pin_memory: copy micro-batches through pinned memory, for accelerators.
        group_by_length: let samples of similar length follow each other: within each 1,024 of the shuffled ones the
            longest come first. For models that cannot do without padding (`training.padding_free`).
        drop_last: leave out the last micro-batches of an epoch that do not fill one for every process.
        prefetch_factor: micro-batches each worker keeps ready.
        persistent_workers: keep workers from one epoch to the next.
        seed: of the order.
        rank: of this process among those that share the data.
        world_size: how many processes share the data.
    """

    def __init__(
        self,
        dataset: Any,
        processor: Any,
        batch_size: int = 1,
        shuffle: bool | None = None,
        sampler: Literal["distributed", "random", "sequential"] | None = None,
        collate_fn: Collate | None = None,
        group_by_length: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        drop_last: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise InputError(f"batch_size must be at least 1 and num_workers at least 0: {batch_size}, {num_workers}")
        if shuffle is not None and sampler is not None and shuffle == (sampler == "sequential"):
            raise InputError(f"shuffle: {shuffle} and sampler: {sampler} contradict each other; leave one of them out")
        if isinstance(dataset, IterableDataset) and world_size > 1:
            if not (hasattr(dataset, "rank") and hasattr(dataset, "world_size")):
                raise InputError(
                    "this iterable data set has no attributes rank and world_size, by which processes share its rows"
                )
            dataset.rank, dataset.world_size = rank, world_size
        self.batch_size = batch_size
        self.world_size = world_size
        self._iterable = isinstance(dataset, IterableDataset)
        self._dataset = dataset
        self._epoch_had_ended = False
        if pin_memory and not torch.accelerator.is_available():
            notice("pin_memory has no accelerator to serve here: memory is not pinned")
            pin_memory = False
        if self._iterable and (shuffle or sampler == "random"):
            raise InputError("an iterable data set comes in its own order: leave shuffle and sampler out")
        if group_by_length and (self._iterable or shuffle is False or sampler == "sequential"):
            raise InputError("group_by_length is for a map-style data set that is shuffled")
        if not self._iterable and not len(dataset):
            raise InputError("the data set is empty")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if num_workers > cores and not self._iterable:
            notice(f"num_workers: {num_workers} is more than this machine's {cores} cores: {cores} are started")
            num_workers = cores
        is_plain = collate_fn is None and not isinstance(dataset, CollatingDataset)
        options: dict[str, Any] = {
            "collate_fn": collate_fn or (pad(processor) if is_plain else dataset.default_collate(processor)),
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            # a generator of its own, so that starting workers draws nothing from the run's generators
            "generator": torch.Generator().manual_seed(seed),
        }
        if num_workers:
            modules = {type(dataset).__module__}
            if self._iterable or not is_plain:  # which may hold the processor
                modules.add(type(processor).__module__)
            options |= {
                "persistent_workers": persistent_workers,
                "prefetch_factor": prefetch_factor,
                "multiprocessing_context": worker_context(modules),
                "worker_init_fn": end_with_parent,
            }
        if self._iterable:
            from torchdata.stateful_dataloader import StatefulDataLoader  # 0.3 s that only streaming needs

            self._loader: Any = StatefulDataLoader(dataset, batch_size=batch_size, drop_last=drop_last, **options)
            return
        if shuffle is None:
            shuffle = sampler != "sequential"
        lengths = sample_lengths(dataset) if group_by_length else None
        self._batches = MicroBatchSampler(len(dataset), batch_size, shuffle, drop_last, seed, rank, world_size, lengths)
        self._loader = TorchDataLoader(dataset, batch_sampler=self._batches, **options)

    @property
    def samples_per_turn(self) -> int:
        """Samples that all processes together take for one micro-batch each."""
        return self.batch_size * self.world_size

    def micro_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's micro-batches of an epoch, from the global sample position `start`."""
        if self._epoch_had_ended:
            self._epoch_had_ended = False
            return
        if not self._iterable:
            self._batches.epoch, self._batches.start = epoch, start
        elif hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        try:
            with without_main(), loss_told(self._loader.num_workers):
                batches = iter(self._loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"the data set or its collate function cannot be sent to worker processes ({error}); num_workers: 0 "
                "does without them"
            ) from error
        try:
            with loss_told(self._loader.num_workers):
                yield from batches
        except InputError as error:  # torch puts the worker's traceback before the message
            raise InputError(str(error).rpartition("automodel.errors.InputError: ")[2].strip()) from error

    def num_micro_batches(self) -> int | None:
        """Micro-batches of a whole epoch on the rank that has most, or None for an iterable data set."""
        return None if self._iterable else self._batches.num_micro_batches()

    def state_dict(self) -> dict[str, Any]:
        """The state of an iterable data set's loader; empty for a map-style one, whose sample position is enough."""
        return {"num_workers": self._loader.num_workers, "loader": self._loader.state_dict()} if self._iterable else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            InputError: it was saved with another number of workers.
        """
        if self._iterable != bool(state):
            raise InputError(
                "this run was saved with another kind of data set: streaming is on in one and off in the other"
            )
        if not self._iterable:
            return
        if state["num_workers"] != self._loader.num_workers:
            raise InputError(
                f"this run was saved with dataloader.num_workers: {state['num_workers']}, and a streaming data set "
                f"resumes only with the same number, not {self._loader.num_workers}"
            )
        # torchdata 0.11 would give an epoch that had ended once more; test_dataloader.py tells if the key goes
        self._epoch_had_ended = state["loader"]["_iterator_finished"]
        if not self._epoch_had_ended:
            self._loader.load_state_dict(state["loader"])


class MicroBatchSampler:
    """Lists of sample indices. Each epoch has one order, dealt out to the ranks in turns of `batch_size`.

    With the `lengths` of all samples those of similar length follow each other.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.lengths = lengths
        self.num_samples, self.batch_size, self.shuffle, self.drop_last = num_samples, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's micro-batches of the epoch, from `start`."""
        order = self.order()
        for turn in range(self.start, self._end(), self.batch_size * self.world_size):
            first = turn + self.rank * self.batch_size
            if indices := order[first : first + self.batch_size]:
                yield indices

    def order(self) -> list[int]:
        """The order of all samples in this epoch."""
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator().manual_seed((self.seed << 24) + self.epoch)
        shuffled = torch.randperm(self.num_samples, generator=generator).tolist()
        if (lengths := self.lengths) is None:
            return shuffled
        groups = (shuffled[start : start + _SAMPLES_GROUPED] for start in range(0, len(shuffled), _SAMPLES_GROUPED))
        return [index for group in groups for index in sorted(group, key=lambda index: -lengths[index])]

    def num_micro_batches(self) -> int:
        """Micro-batches of a whole epoch on the first rank, which has as many as any."""
        return len(range(0, self._end(), self.batch_size * self.world_size))

    def _end(self) -> int:
        turn = self.batch_size * self.world_size
        return self.num_samples - self.num_samples % turn if self.drop_last else self.num_samples
