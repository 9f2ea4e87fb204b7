"""The map-style data set and its cache."""

import os
import pickle

import pytest
import torch
from automodel import InputError
from automodel_models_llm import encoded
from automodel_models_llm.text_instruction import text_instruction

ROWS = [{"instruction": f"What is {n} + 1?", "output": str(n + 1)} for n in range(2500)]


@pytest.fixture
def encodings(monkeypatch):
    """Counts how often rows are encoded anew."""
    times = []
    write = encoded._write
    monkeypatch.setattr(encoded, "_write", lambda *args: (times.append(1), write(*args)))
    return times


def same(one, other):
    return len(one) == len(other) and all(
        (one[i][name] == other[i][name]).all() for i in range(len(one)) for name in ("input_ids", "labels")
    )


def test_rows_keep_their_order_over_batches_of_encoding(tokenizer, write, whole):
    dataset = text_instruction(write(*ROWS), tokenizer)
    assert len(dataset) == len(ROWS)
    for index in (0, 1023, 1024, 2499, -1):
        assert f"What is {ROWS[index]['output']}" not in whole(dataset[index])
        assert ROWS[index]["instruction"] in whole(dataset[index])
    with pytest.raises(IndexError):
        dataset[2500]


def test_a_second_run_takes_what_the_first_has_encoded(tokenizer, write, encodings):
    path = write(*ROWS[:5])
    first, second = text_instruction(path, tokenizer), text_instruction(path, tokenizer)
    assert len(encodings) == 1
    assert same(first, second)


def test_other_rows_tokenizers_or_arguments_are_encoded_anew(tokenizer, with_template, write, encodings):
    path = write(*ROWS[:5])
    text_instruction(path, tokenizer)
    for change in (
        {"max_length": 100},
        {"truncation": "skip"},
        {"on_bad_row": "skip"},
        {"use_chat_template": False},
        {"system_prompt": "Be brief."},
        {"answer_only_loss_mask": False},
        {"limit_dataset_samples": 3},
        {"column_mapping": {"instruction": "instruction", "output": "output"}},
    ):
        before = len(encodings)
        text_instruction(path, tokenizer, **change)
        assert len(encodings) == before + 1, change
    before = len(encodings)
    text_instruction(path, with_template("{# another #}" + tokenizer.chat_template))
    write(*ROWS[:4])
    assert len(text_instruction(path, tokenizer)) == 4
    assert len(encodings) == before + 2


def test_a_copy_of_the_file_elsewhere_is_not_encoded_again(tokenizer, write, encodings):
    text_instruction(write(*ROWS[:5]), tokenizer)
    text_instruction(write(*ROWS[:5], name="copy.jsonl"), tokenizer)
    assert len(encodings) == 1


@pytest.mark.parametrize("name", ["tokens.i32", "loss.u8", "offsets.npy", "notices.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_made_anew(name, damage, tokenizer, write, cache, encodings):
    path = write(*ROWS[:5])
    before = [dict(sample) for sample in text_instruction(path, tokenizer)]
    [file] = cache.glob(f"datasets/*/{name}")
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    assert same(text_instruction(path, tokenizer), before)
    assert len(encodings) == 2


def test_nothing_is_left_behind_by_rows_that_cannot_be_used(tokenizer, write, cache):
    with pytest.raises(InputError):
        text_instruction(write("{"), tokenizer)
    assert [path for path in cache.glob("datasets/*") if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_told(tokenizer, write, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOMODEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set AUTOMODEL_CACHE to a directory that can be written"):
        text_instruction(write(*ROWS[:5]), tokenizer)


def test_pickling_sends_the_path_only(tokenizer, write):
    dataset = text_instruction(write(*ROWS), tokenizer)
    sent = pickle.dumps(dataset)
    assert len(sent) < 500
    assert same(pickle.loads(sent), dataset)


def test_workers_give_the_same_samples(tokenizer, write, capfd):
    dataset = text_instruction(write(*ROWS[:40]), tokenizer)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert same(list(loader), dataset)
    assert "TOKENIZERS_PARALLELISM" not in capfd.readouterr().err
