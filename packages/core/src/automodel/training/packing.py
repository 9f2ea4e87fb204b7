"""Sequence packing: several samples laid end to end in each sequence, every one a document of its own."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from automodel.errors import InputError
from automodel.interfaces import CollatingDataset, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORED_LABEL = -100  # collate.py has it too, and imports torch


@dataclass(frozen=True)
class Piece:
    """The tokens `start` to `stop` of a sample."""

    sample: int
    start: int
    stop: int


class PackedDataset:
    """A map-style data set of packs: `input_ids`, `labels`, and `position_ids` that begin with 0 in each document.

    The first label of a document is -100: nothing of the document before is to foretell it.

    Args:
        dataset: of samples.
        packs: what each pack consists of.
    """

    def __init__(self, dataset: Any, packs: list[list[Piece]]) -> None:
        self.dataset = dataset
        self._bounds = np.cumsum([0, *map(len, packs)])
        # arrays, which go to worker processes fast
        self._pieces = np.array([(p.sample, p.start, p.stop) for pack in packs for p in pack], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        pieces = self._pieces[self._bounds[index] : self._bounds[index + 1]]
        ids, labels, positions = [], [], []
        for number, start, stop in pieces.tolist():
            sample = self.dataset[number]
            ids.append(np.asarray(sample["input_ids"][start:stop]))
            own_labels = np.array(sample["labels"][start:stop])
            own_labels[0] = IGNORED_LABEL
            labels.append(own_labels)
            positions.append(np.arange(stop - start))
        arrays = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return {name: np.concatenate(parts) for name, parts in arrays.items()}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each pack."""
        ends = np.cumsum(np.append(0, self._pieces[:, 2] - self._pieces[:, 1]))
        lengths: NDArray[np.int64] = np.diff(ends[self._bounds])
        return lengths


def best_fit(dataset: Any, packed_sequence_size: int, split_across_pack: bool = False, seed: int = 0) -> Any:
    """Samples packed into sequences of so many tokens, the longest first, each where it fits best.

    That is best-fit decreasing, which fills nearly every sequence (Ding et al. 2024, arXiv:2404.10830). Which samples
    lie together depends on the data and the seed; the data loader shuffles the sequences. `dataloader.batch_size` then
    counts sequences.

    Args:
        dataset: the recipe's training data, of known length.
        packed_sequence_size: tokens of a sequence; 0 does not pack.
        split_across_pack: fill each sequence to the last token, and go on with the rest of that sample in the next one,
            where it is a document of its own.
        seed: of the order in which samples of the same length are taken, and of all samples with `split_across_pack`.

    Raises:
        InputError: the data cannot be packed, or a sample is longer than a sequence.
    """
    if packed_sequence_size < 1:
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError("packed_sequence needs data of known length: leave streaming out, or packed_sequence")
    lengths = sample_lengths(dataset)
    order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
    if split_across_pack:
        return PackedDataset(dataset, list(_filled(lengths, order, packed_sequence_size)))
    if too_long := sum(length > packed_sequence_size for length in lengths):
        raise InputError(
            f"{too_long} samples are longer than packed_sequence_size: {packed_sequence_size} (the longest has "
            f"{max(lengths)} tokens): raise it, set the data set's max_length and truncation, or split_across_pack: "
            "true"
        )
    return PackedDataset(dataset, _best_fit_decreasing(lengths, order, packed_sequence_size))


def sample_lengths(dataset: Any) -> list[int]:
    """Tokens of each sample: what the data set says in `lengths`, or what its samples have.

    Raises:
        InputError: the samples are no text.
    """
    if isinstance(dataset, CollatingDataset):
        raise InputError(
            "packed_sequence and dataloader.group_by_length are for data sets of text; this one brings images: leave "
            "them out"
        )
    if hasattr(dataset, "lengths"):
        lengths: list[int] = np.asarray(dataset.lengths).tolist()
        return lengths
    return [len(dataset[index]["input_ids"]) for index in range(len(dataset))]


def _best_fit_decreasing(lengths: list[int], order: list[int], size: int) -> list[list[Piece]]:
    packs: list[list[Piece]] = []
    pack: list[Piece]
    with_room: dict[int, list[list[Piece]]] = {}  # room -> packs
    rooms: list[int] = []  # the keys of with_room, sorted
    for sample in sorted(order, key=lambda index: -lengths[index]):
        length = lengths[sample]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room = size
            packs.append(pack := [])
        else:
            room = rooms[place]
            pack = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        pack.append(Piece(sample, 0, length))
        room -= length
        if room not in with_room:
            insort(rooms, room)
        with_room.setdefault(room, []).append(pack)
    return packs


def _filled(lengths: list[int], order: list[int], size: int) -> Iterator[list[Piece]]:
    pack: list[Piece] = []
    room = size
    for sample in order:
        start = 0
        while start < lengths[sample]:
            stop = min(lengths[sample], start + room)
            pack.append(Piece(sample, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield pack
                pack, room = [], size
    if pack:
        yield pack
