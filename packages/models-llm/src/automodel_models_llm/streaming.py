"""The streaming data set: rows are read and encoded as they are needed, and a run resumes at the very sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from automodel import InputError
from automodel.notices import notice
from torch.utils.data import IterableDataset, get_worker_info

from automodel_models_llm.bad_rows import RowReport
from automodel_models_llm.encoding import Encoder
from automodel_models_llm.sources import Row


class StreamingDataset(IterableDataset[Mapping[str, Any]]):
    """Samples in the order of the rows, or shuffled within a buffer.

    The order of the rows depends on the seed and the epoch only. They are dealt out one by one to the ranks and their
    workers; whoever shares the data sets `rank` and `world_size`. Its state is the position in that order, so a
    resume reads rows again but encodes none twice.

    Args:
        rows: reads the rows.
        encoder: encodes them.
        report: makes a new report of bad rows.
        limit: rows that are read at most, or None.
        shuffle_buffer: rows among which the next is drawn; 0 keeps the order.
        seed: of the shuffling, with the epoch.
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Row]],
        encoder: Encoder,
        report: Callable[[], RowReport],
        limit: int | None = None,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ) -> None:
        self.rank = 0
        self.world_size = 1
        self._rows, self._encoder, self._report = rows, encoder, report
        self._limit, self._shuffle_buffer, self._seed = limit, shuffle_buffer, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        self._position = (0, 0)  # row in the order of the epoch, samples of it that were given
        self._resume = (0, 0)
        self._check_first_row()

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew for this epoch."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position in this epoch."""
        row, samples = self._position
        return {"epoch": int(self._epoch), "row": row, "samples": samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin at that position."""
        self.set_epoch(state["epoch"])
        self._position = self._resume = (state["row"], state["samples"])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self._position, self._resume = self._resume, (0, 0)
        return self._samples(*self._position)

    def _samples(self, first: int, num_given: int) -> Iterator[Mapping[str, Any]]:
        worker = get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        shares, share = self.world_size * num_workers, worker_id * self.world_size + self.rank
        report = self._report()
        for index, row in enumerate(self._ordered()):
            if index < first or index % shares != share:
                continue
            [samples] = self._encoder.encode([row], report)
            report.raise_errors()
            for number, sample in enumerate(samples, start=1):
                if index > first or number > num_given:
                    self._position = (index, number)
                    yield sample.sample()
        for message in report.settle():
            notice(message)

    def _ordered(self) -> Iterator[Row]:
        rows = islice(self._rows(), self._limit)
        if not self._shuffle_buffer:
            yield from rows
            return
        generator = random.Random(f"{self._seed} {int(self._epoch)}")
        waiting = list(islice(rows, self._shuffle_buffer))
        for row in rows:
            place = generator.randrange(len(waiting))
            yield waiting[place]
            waiting[place] = row
        generator.shuffle(waiting)
        yield from waiting

    def _check_first_row(self) -> None:
        first = next(iter(self._rows()), None)
        if first is None:
            raise InputError("the data set holds no rows: its files are empty")
        report = self._report()
        self._encoder.encode([first], report)
        report.raise_errors()
