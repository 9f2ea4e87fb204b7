"""Packs hold every sample once, as a document of its own."""

import random

import numpy as np
import pytest
from automodel import InputError
from automodel.training.packing import best_fit, sample_lengths


def samples(num, longest=50, seed=0):
    draw = random.Random(seed)
    rows = []
    for number in range(num):
        ids = [1000 * number + position for position in range(draw.randint(2, longest))]
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return rows


def documents(pack):
    """The pieces of a pack, told by their positions."""
    firsts = [place for place, position in enumerate(pack["position_ids"]) if position == 0]
    return [pack["input_ids"][a:b].tolist() for a, b in zip(firsts, [*firsts[1:], len(pack["input_ids"])], strict=True)]


def test_every_sample_is_in_one_pack_and_no_pack_is_too_long():
    rows = samples(200)
    packed = best_fit(rows, 64)
    found = sorted(document for pack in (packed[i] for i in range(len(packed))) for document in documents(pack))
    assert found == sorted(row["input_ids"] for row in rows)
    assert max(packed.lengths) <= 64
    assert packed.lengths.tolist() == [len(packed[i]["input_ids"]) for i in range(len(packed))]
    assert sum(packed.lengths) / (64 * len(packed)) > 0.97, "best-fit decreasing leaves hardly any room"


def test_labels_are_those_of_the_samples():
    packed = best_fit(samples(20), 64)
    for pack in (packed[i] for i in range(len(packed))):
        first = pack["position_ids"] == 0
        assert (pack["labels"][first] == -100).all()
        assert np.array_equal(pack["labels"][~first], pack["input_ids"][~first])


def test_packs_depend_on_the_seed_alone():
    rows = samples(50)
    one, same, other = (best_fit(rows, 64, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[i]["input_ids"], same[i]["input_ids"]) for i in range(len(one)))
    fewest = min(len(one), len(other))
    assert not all(np.array_equal(one[i]["input_ids"], other[i]["input_ids"]) for i in range(fewest))


def test_split_packs_are_full_and_hold_every_token_once():
    rows = samples(30)
    packed = best_fit(rows, 16, split_across_pack=True)
    assert set(packed.lengths.tolist()[:-1]) == {16}
    tokens = [token for i in range(len(packed)) for token in packed[i]["input_ids"].tolist()]
    assert sorted(tokens) == sorted(token for row in rows for token in row["input_ids"])
    assert all((packed[i]["labels"][packed[i]["position_ids"] == 0] == -100).all() for i in range(len(packed)))


def test_a_sample_longer_than_a_pack_is_told():
    with pytest.raises(InputError, match=r"1 samples are longer than packed_sequence_size: 8 \(the longest has 9"):
        best_fit([{"input_ids": list(range(9)), "labels": list(range(9))}], 8)


def test_data_of_unknown_length_is_refused():
    with pytest.raises(InputError, match="known length"):
        best_fit(iter([]), 8)


def test_size_zero_does_not_pack():
    rows = samples(3)
    assert best_fit(rows, 0) is rows


def test_samples_that_are_no_text_have_no_length():
    class Images(list):
        def default_collate(self, processor):
            return processor

    with pytest.raises(InputError, match="group_by_length"):
        sample_lengths(Images([{"pixel_values": 0}]))
