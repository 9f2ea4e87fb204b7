"""The streaming data set: the same samples as the map-style one, shared out, shuffled, resumed."""

import copy
import itertools
import json
import pickle

import pytest
from automodel import InputError, notices
from automodel.training.dataloader import DataLoader
from automodel.training.step_scheduler import Progress, global_batches
from automodel_models_llm.text_instruction import plain_text, text_instruction
from torchdata.stateful_dataloader import StatefulDataLoader

ROWS = [{"instruction": f"What is {n} + 1?", "output": str(n + 1)} for n in range(60)]


def ids(samples):
    return [sample["input_ids"].tolist() for sample in samples]


@pytest.fixture
def path(write):
    return write(*ROWS)


def test_streaming_gives_the_samples_of_the_map_style_data_set(path, tokenizer):
    streamed = text_instruction(path, tokenizer, streaming=True)
    ready = text_instruction(path, tokenizer)
    assert ids(streamed) == ids(ready)
    assert [s["labels"].tolist() for s in streamed] == [s["labels"].tolist() for s in ready]


def test_every_sample_comes_once_with_any_number_of_ranks_and_workers(path, tokenizer):
    expected = sorted(ids(text_instruction(path, tokenizer)))
    for world_size, num_workers in ((1, 2), (3, 0), (2, 2)):
        seen = []
        for rank in range(world_size):
            dataset = text_instruction(path, tokenizer, streaming=True, shuffle_buffer=8)
            dataset.rank, dataset.world_size = rank, world_size
            seen += ids(StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers))
        assert sorted(seen) == expected, (world_size, num_workers)


def test_the_shuffled_order_depends_on_seed_and_epoch_only(path, tokenizer):
    def order(epoch, **options):
        dataset = text_instruction(path, tokenizer, streaming=True, shuffle_buffer=16, **options)
        dataset.set_epoch(epoch)
        return ids(dataset)

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=7)
    assert order(1) != ids(text_instruction(path, tokenizer))
    shares = []
    for rank in range(2):
        dataset = text_instruction(path, tokenizer, streaming=True, shuffle_buffer=16)
        dataset.rank, dataset.world_size = rank, 2
        dataset.set_epoch(1)
        shares.append(ids(dataset))
    assert [sample for pair in zip(*shares, strict=True) for sample in pair] == order(1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle_buffer", [0, 16])
@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_a_resume_goes_on_exactly(num_workers, shuffle_buffer, num_batches, path, tokenizer):
    def loader():
        dataset = text_instruction(path, tokenizer, streaming=True, shuffle_buffer=shuffle_buffer)
        dataset.set_epoch(3)
        return StatefulDataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=ids), dataset

    whole, dataset = loader()
    expected = list(whole)
    dataset.set_epoch(4)
    following = list(whole)
    first, _ = loader()
    batches = iter(first)
    assert [next(batches) for _ in range(num_batches)] == expected[:num_batches]
    state = json.loads(json.dumps(first.state_dict()))
    resumed, dataset = loader()
    resumed.load_state_dict(state)
    assert list(resumed) == expected[num_batches:]
    dataset.set_epoch(4)
    assert list(resumed) == following


WORKERS = [{"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]
RESUMES = [
    pytest.param(*case, marks=pytest.mark.slow if case[2] and case[:2] not in {(3, 3), (4, 0)} else ())
    for case in itertools.product((2, 3, 4, 6), (0, 3), ({}, *WORKERS))  # groups of 2, 2 and 1 rows in each epoch
]


@pytest.mark.parametrize(("num_groups", "shuffle_buffer", "options"), RESUMES)
def test_a_resume_from_any_step_of_an_epoch_goes_on_exactly(num_groups, shuffle_buffer, options, write, tokenizer):
    path = write(*ROWS[:5])

    def loader():
        dataset = text_instruction(path, tokenizer, streaming=True, shuffle_buffer=shuffle_buffer)
        return DataLoader(dataset, tokenizer, batch_size=1, collate_fn=ids, **options)

    def groups(loader, progress):
        for group in global_batches(loader, progress, 2, num_epochs=3):
            yield progress.epoch, group

    expected = list(groups(loader(), Progress()))
    assert [epoch for epoch, _ in expected] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    first, progress = loader(), Progress()
    running = groups(first, progress)
    assert [next(running) for _ in range(num_groups)] == expected[:num_groups]
    state, progress = json.loads(json.dumps(first.state_dict())), copy.copy(progress)
    resumed = loader()
    resumed.load_state_dict(state)
    assert list(groups(resumed, progress)) == expected[num_groups:]


def test_a_resume_within_a_row_that_was_split_goes_on_exactly(write, tokenizer):
    path = write(*({"text": f"{n} " * 20} for n in range(6)))
    first, resumed = (plain_text(path, tokenizer, max_length=8, streaming=True) for _ in range(2))
    expected = ids(first)
    for position in range(len(expected)):
        samples = iter(first)
        for _ in range(position):
            next(samples)
        resumed.load_state_dict(first.state_dict())
        assert ids(resumed) == expected[position:], position


def test_it_can_be_sent_to_spawned_workers(path, tokenizer):
    dataset = text_instruction(path, tokenizer, streaming=True, shuffle_buffer=4)
    assert ids(pickle.loads(pickle.dumps(dataset))) == ids(dataset)


def test_persistent_workers_see_the_next_epoch(path, tokenizer):
    dataset = text_instruction(path, tokenizer, streaming=True, shuffle_buffer=16)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append(ids(loader))
    dataset.set_epoch(1)
    assert epochs[1] == ids(dataset)
    assert epochs[0] != epochs[1]


def test_only_the_first_rows_are_read_when_asked(path, tokenizer):
    assert len(ids(text_instruction(path, tokenizer, streaming=True, limit_dataset_samples=7))) == 7


def test_a_bad_row_is_told_when_it_comes_and_the_first_one_at_once(write, tokenizer, capsys):
    path = write(ROWS[0], ROWS[1], "{")
    samples = iter(text_instruction(path, tokenizer, streaming=True))
    assert len([next(samples), next(samples)]) == 2
    with pytest.raises(InputError, match=r"train.jsonl:3: broken JSON"):
        next(samples)
    with pytest.raises(InputError, match=r"train.jsonl:1: broken JSON"):
        text_instruction(write("{", ROWS[0]), tokenizer, streaming=True)
    assert len(ids(text_instruction(path, tokenizer, streaming=True, on_bad_row="skip"))) == 1
    assert "1 row of the data set cannot be used and is left out" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"on_bad_row": "skip"}, {"max_length": 50, "truncation": "right"}])
def test_rows_left_out_or_cut_are_told_once_and_end_no_strict_run(options, write, tokenizer, capsys):
    long = {"instruction": "Count.", "output": "one two three " * 20}
    path = write(*ROWS[:3], long, *(["{"] if "on_bad_row" in options else []))
    with notices.strictness(True):
        dataset = text_instruction(path, tokenizer, streaming=True, **options)
        for epoch in range(2):
            dataset.set_epoch(epoch)
            assert len(ids(dataset)) == 4
    output = capsys.readouterr().err
    assert output.count("note: 1 row") == 1
    assert ("is left out" if "on_bad_row" in options else "is cut on the right") in output


def test_each_worker_tells_of_its_share_once(write, tokenizer, capfd):
    dataset = text_instruction(write(*ROWS[:4], "{", "{", "{"), tokenizer, streaming=True, on_bad_row="skip")
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert len(ids(loader)) == 4
    output = capfd.readouterr().err
    assert output.count("note: share 1 of 2: 2 rows of the data set cannot be used and are left out") == 1
    assert output.count("note: share 2 of 2: 1 row of the data set cannot be used and is left out") == 1
