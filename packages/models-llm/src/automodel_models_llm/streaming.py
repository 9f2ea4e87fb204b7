"""The streaming data set: rows are read and encoded as they are needed, and a run resumes at the very sample."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from automodel import InputError
from automodel_huggingface.bad_rows import RowReport
from automodel_huggingface.sources import Row
from torch.utils.data import IterableDataset, get_worker_info

from automodel_models_llm.encoding import Encoder

_MAX_WORKERS = 4096  # more than any machine starts; each has its places in shared memory


class StreamingDataset(IterableDataset[Mapping[str, Any]]):
    """Samples in the order of the rows, or shuffled within a buffer.

    The order of the rows depends on the seed and the epoch only. They are dealt out one by one to the ranks and their
    workers; whoever shares the data sets `rank` and `world_size`. Its state is the position in that order, so a
    resume reads rows again but encodes none twice.

    A resume position holds for its epoch until `set_epoch` names another one; it is not used up by an iteration.
    torchdata builds its iterator twice where a state was saved at the very end of an epoch, the second time with new
    workers that get no state, and reads ahead from the first. So the position lies in memory that the workers share.

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
        self._resume = torch.zeros((_MAX_WORKERS, 2), dtype=torch.int64).share_memory_()  # such a position per worker
        self._num_told = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()  # rows in the last note of each
        self._check_first_row()

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew for this epoch, and begin with its first row unless a state of it was loaded."""
        if epoch != int(self._epoch):
            self._resume.zero_()
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position in this epoch."""
        row, samples = self._position
        return {"epoch": int(self._epoch), "row": row, "samples": samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the iterations of that epoch begin at that position."""
        self._epoch.fill_(state["epoch"])  # not set_epoch, which would undo what another worker has just loaded
        _, worker_id = _worker()
        self._resume[worker_id] = torch.tensor((state["row"], state["samples"]))
        self._position = self._start()

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self._position = self._start()
        return self._samples()

    def _start(self) -> tuple[int, int]:
        _, worker_id = _worker()
        row, samples = self._resume[worker_id].tolist()
        return row, samples

    def _samples(self) -> Iterator[Mapping[str, Any]]:
        num_workers, worker_id = _worker()
        shares, share = self.world_size * num_workers, worker_id * self.world_size + self.rank
        report = self._report()
        first, num_given = self._position = self._start()
        for index, row in enumerate(self._ordered()):
            if index < first or index % shares != share:
                continue
            [samples] = self._encoder.encode([row], report)
            report.raise_errors()
            for number, sample in enumerate(samples, start=1):
                if index > first or number > num_given:
                    self._position = (index, number)
                    yield sample.sample()
        num_rows = report.num_bad + report.num_long
        if num_rows > self._num_told[worker_id]:
            self._num_told[worker_id] = num_rows
            _tell(report.settle(), f"share {share + 1} of {shares}: " if shares > 1 else "")

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


def _worker() -> tuple[int, int]:
    """How many workers there are, and which one this is; outside of workers the first of one."""
    worker = get_worker_info()
    return (worker.num_workers, worker.id) if worker else (1, 0)


def _tell(messages: Iterable[str], share: str) -> None:
    """Print notes without `notice`: under --strict it would end a run that has trained for a whole epoch."""
    if os.environ.get("RANK", "0") == "0":
        for message in messages:
            print(f"note: {share}{message}", file=sys.stderr, flush=True)
