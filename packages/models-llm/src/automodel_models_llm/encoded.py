"""The map-style data set: every row encoded before training, kept in memory-mapped files in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from automodel import InputError
from automodel.notices import notice
from automodel_huggingface.bad_rows import RowReport
from automodel_huggingface.cache import cache_directory, one_at_a_time, publish
from automodel_huggingface.sources import Row

from automodel_models_llm.encoding import Encoded, Encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 2  # raise it when what is written here, or what encoding makes of a row, changes
ROWS_AT_ONCE = 1024


class EncodedDataset:
    """Samples in files of one directory: `tokens.i32` and `loss.u8` for all tokens, `offsets.npy` of S+1 boundaries.

    Each DataLoader worker maps the files by itself; pickling sends only the path.

    Raises:
        ValueError: the files are not complete.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        offsets = np.load(directory / "offsets.npy")
        num_tokens = int(offsets[-1])
        sizes = [(directory / name).stat().st_size for name in ("tokens.i32", "loss.u8")]
        if sizes != [4 * num_tokens, num_tokens]:
            raise ValueError(f"{directory} is damaged")
        self._open(offsets)

    def _open(self, offsets: NDArray[np.int64]) -> None:
        self._offsets = offsets
        self._tokens = np.memmap(self.directory / "tokens.i32", dtype=np.int32, mode="r")
        self._loss = np.memmap(self.directory / "loss.u8", dtype=np.bool_, mode="r")

    def __getstate__(self) -> Path:
        return self.directory

    def __setstate__(self, directory: Path) -> None:
        self.directory = directory
        self._open(np.load(directory / "offsets.npy"))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample."""
        return np.diff(self._offsets)

    @property
    def num_label_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(np.count_nonzero(self._loss))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int32]]:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = slice(self._offsets[index], self._offsets[index + 1])
        return Encoded(np.array(self._tokens[part]), np.array(self._loss[part])).sample()


def encode_all(
    rows: Callable[[], Iterable[Row]], source_digest: str, encoder: Encoder, limit: int | None, report: RowReport
) -> EncodedDataset:
    """Encode every row, or take what an earlier run with the same rows and settings has left in the cache.

    Args:
        rows: reads the rows.
        source_digest: changes when the rows do.
        encoder: encodes them.
        limit: rows that are read at most, or None.
        report: for what is wrong with the rows.

    Raises:
        InputError: rows that cannot be used, or none that can; or the cache cannot be written.
    """
    key = "\0".join((str(FORMAT), source_digest, encoder.digest(), str(limit), report.on_bad_row))
    target = cache_directory() / "datasets" / hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        with one_at_a_time(target):
            if (cached := _cached(target)) is not None:
                return cached
            shutil.rmtree(target, ignore_errors=True)
            with publish(target) as directory:
                _write(directory, islice(rows(), limit), encoder, report)
            return EncodedDataset(target)
    except OSError as error:
        raise InputError(
            f"the encoded data set cannot be kept in {target.parent} ({error}); set AUTOMODEL_CACHE to a directory "
            f"that can be written, or use streaming: true"
        ) from error


def _cached(target: Path) -> EncodedDataset | None:
    """What is in the cache; the notices of its making are given again."""
    try:
        dataset = EncodedDataset(target)
        notices = json.loads((target / "notices.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError):  # not there, or damaged: made anew
        return None
    for message in notices:
        notice(message)
    return dataset


def _write(directory: Path, rows: Iterable[Row], encoder: Encoder, report: RowReport) -> None:
    lengths: list[int] = []
    num_rows = 0
    with (directory / "tokens.i32").open("wb") as tokens, (directory / "loss.u8").open("wb") as loss, _threads():
        for batch in batched(rows, ROWS_AT_ONCE):
            num_rows += len(batch)
            for samples in encoder.encode(batch, report):
                for sample in samples:
                    tokens.write(sample.tokens.tobytes())
                    loss.write(sample.loss.tobytes())
                    lengths.append(len(sample.tokens))
    notices = report.settle()
    if not num_rows:
        raise InputError("the data set holds no rows: its files are empty")
    if not lengths:
        raise InputError(f"none of the {num_rows:,} rows of the data set can be used: {'; '.join(notices)}")
    for message in notices:
        notice(message)
    np.save(directory / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    (directory / "notices.json").write_text(json.dumps(notices), encoding="utf-8")


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Yield lists of `size` rows; the last may be shorter."""
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


@contextmanager
def _threads() -> Iterator[None]:
    """Let the tokenizer use its threads here, and never after: in processes forked later they would not be there.

    That the variable is set also spares every such process the warning of `tokenizers` about it.
    """
    if "TOKENIZERS_PARALLELISM" in os.environ:
        yield
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
