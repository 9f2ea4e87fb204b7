"""What is said about data that cannot be used: the file, the line, what was found, what to do."""

import gzip
import json
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from automodel import InputError, notices
from automodel_models_llm.text_instruction import chat, column_mapped, plain_text, text_instruction

GOOD = {"instruction": "Say hi.", "output": "hi"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"instruction": "a", "output": }', "broken JSON at column 32: Expecting value"),
        ('{"instruction": "a"', "broken JSON at column 20"),
        ("[1, 2]", "not a JSON object of columns, but a list"),
        ("null", "not a JSON object of columns, but null"),
        ({"instruction": "a", "outptu": "b"}, "no `output`; did you mean `outptu`? (columns: instruction, outptu)"),
        (
            {"instruct": "a", "output": "b"},
            "its columns (instruct, output) fit no known format; did you mean `instruction`?",
        ),
        ({"foo": 1}, "known: messages (+ tools), instruction (+ input) + output"),
        ({}, "its columns (none) fit no known format"),
        ({"instruction": "a", "output": 42}, "the column `output` is a number, not text"),
        ({"instruction": "a", "output": None}, "the column `output` is null"),
        ({"instruction": "a", "output": " \n"}, "the column `output` is empty"),
        (
            {"instruction": ["a"], "output": "b"},
            "message 1 of `instruction` is text, not an object with role and content",
        ),
        ({"messages": "hello"}, "the column `messages` is text, but no JSON"),
        ({"messages": []}, "the column `messages` is an empty list"),
        ({"messages": {"role": "user"}}, "the column `messages` is an object, not a list of messages"),
        ({"messages": [{"content": "a"}]}, "message 1 of `messages` has no `role`; it has content"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]},
            "message 2 of `messages` has the unknown role 'asistant'; did you mean `assistant`?",
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, "no turn of the assistant to learn from"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
            "message 2 of `messages` (assistant) is empty",
        ),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}, "(user) has no `content`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}]},
            "holds a part of type image; a text model reads only text",
        ),
        ({"text": ""}, "the column `text` is empty"),
    ],
)
def test_a_bad_row_is_told_with_its_file_and_line(row, why, tokenizer, write):
    path = write(GOOD, "", row, GOOD)
    with pytest.raises(InputError, match=re.escape(f"{path}:3: ")) as error:
        text_instruction(path, tokenizer)
    assert why in str(error.value)
    assert "1 row of the data set cannot be used" in str(error.value)


def test_the_first_five_bad_rows_are_told_and_all_are_counted(tokenizer, write):
    path = write(*[GOOD, {"foo": 1}] * 8)
    with pytest.raises(InputError) as error:
        text_instruction(path, tokenizer)
    assert "8 rows of the data set cannot be used" in str(error.value)
    assert [line for line in (2, 4, 6, 8, 10, 12) if f"{path}:{line}: " in str(error.value)] == [2, 4, 6, 8, 10]
    assert "... and 3 more" in str(error.value)


def test_bad_rows_are_left_out_and_told_every_time_when_asked(tokenizer, write, capsys):
    path = write(GOOD, "{", GOOD)
    for _ in range(2):  # the second time from the cache
        with notices.strictness(False):
            assert len(text_instruction(path, tokenizer, on_bad_row="skip")) == 2
        assert (
            f"1 row of the data set cannot be used and is left out:\n  {path}:2: broken JSON" in capsys.readouterr().err
        )
    with notices.strictness(True), pytest.raises(InputError, match="left out"):
        text_instruction(path, tokenizer, on_bad_row="skip")


def test_no_usable_row_at_all_is_an_error(tokenizer, write):
    with pytest.raises(InputError, match="none of the 2 rows"):
        text_instruction(write("{", "{"), tokenizer, on_bad_row="skip")


def test_bytes_that_are_not_utf_8_are_a_bad_row(tokenizer, tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"latin.jsonl:2: not UTF-8 text \(byte 14 of the line\)"):
        text_instruction(str(tmp_path / "latin.jsonl"), tokenizer)


LONG = {"instruction": "Count.", "output": "one two three four five six seven eight nine ten " * 4}


def test_long_rows_are_an_error_that_says_what_to_set(tokenizer, write):
    path = write(GOOD, LONG, GOOD, LONG)
    with pytest.raises(InputError) as error:
        text_instruction(path, tokenizer, max_length=45)
    assert f"2 rows of the data set are longer than 45 tokens; the longest has 75, the first is {path}:2" in str(
        error.value
    )
    assert "truncation: right (cuts the end), left (keeps the end) or skip" in str(error.value)


@pytest.mark.parametrize(
    ("truncation", "lengths"), [("right", [36, 45, 36]), ("left", [36, 45, 36]), ("skip", [36, 36])]
)
def test_long_rows_are_cut_or_left_out_and_told_when_asked(truncation, lengths, tokenizer, write, capsys):
    path = write(GOOD, LONG, GOOD)
    everything = text_instruction(path, tokenizer)
    dataset = text_instruction(path, tokenizer, max_length=45, truncation=truncation)
    assert [len(sample["input_ids"]) for sample in dataset] == lengths
    if truncation != "skip":
        part = slice(0, 45) if truncation == "right" else slice(-45, None)
        for name in ("input_ids", "labels"):
            assert dataset[1][name].tolist() == everything[1][name][part].tolist()
    assert f"(truncation: {truncation}); the longest has 75, the first is {path}:2" in capsys.readouterr().err


def test_a_row_that_loses_all_its_labels_is_bad(tokenizer, write):
    path = write({"instruction": LONG["output"], "output": "hi"})
    with pytest.raises(InputError, match="none of the 45 that truncation: right keeps carries loss"):
        text_instruction(path, tokenizer, max_length=45, truncation="right")


def test_rows_longer_than_the_model_reads_are_long_without_max_length(tokenizer, write):
    with pytest.raises(InputError, match="longer than 8192 tokens"):
        text_instruction(write({"text": "word " * 9000}), tokenizer)


def test_long_texts_are_split_without_loss(tokenizer, write):
    path = write({"text": "word " * 100 + "end"}, {"text": "short"})
    dataset = plain_text(path, tokenizer, max_length=16)
    assert [len(sample["input_ids"]) for sample in dataset] == [16] * 6 + [6, 2]
    joined = [token for index in range(7) for token in dataset[index]["input_ids"].tolist()]
    assert joined == tokenizer("word " * 100 + "end")["input_ids"] + [tokenizer.eos_token_id]


def test_csv_rows_are_told_by_line_even_after_quoted_newlines(tokenizer, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('instruction,input,output\n"two\nlines",,ok\nquestion,,\none,field\n', encoding="utf-8")
    with pytest.raises(InputError) as error:
        text_instruction(str(path), tokenizer)
    assert f"{path}:4: the column `output` is empty" in str(error.value)
    assert f"{path}:5: 2 fields, but the header has 3 columns" in str(error.value)


def test_json_arrays_are_told_by_line(tokenizer, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([GOOD, {"foo": "b"}, 3], indent=1), encoding="utf-8")
    with pytest.raises(InputError) as error:
        text_instruction(str(path), tokenizer)
    assert f"{path}:6: its columns (foo)" in str(error.value)
    assert f"{path}:9: not a JSON object of columns, but a number" in str(error.value)
    path.write_text('[\n{"text": "a"},\n{"text": }\n]', encoding="utf-8")
    with pytest.raises(InputError, match=r"data.json:3: broken JSON at column 10"):
        text_instruction(str(path), tokenizer)


def test_parquet_rows_are_told_by_row(tokenizer, tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"instruction": ["a", "b"], "output": ["x", None]}), path)
    with pytest.raises(InputError, match=r"data.parquet row 2: the column `output` is null"):
        text_instruction(str(path), tokenizer)


def test_every_kind_of_file_gives_the_same_samples(tokenizer, tmp_path):
    rows = [{"instruction": "Say 1.", "output": "1"}, {"instruction": "Sag «ä,ö»", "output": "ä,\nö"}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "c.json").write_text(lines, encoding="utf-8")
    (tmp_path / "d.csv").write_text('instruction,output\nSay 1.,1\n"Sag «ä,ö»","ä,\nö"\n', encoding="utf-8")
    (tmp_path / "e.tsv").write_text('instruction\toutput\nSay 1.\t1\nSag «ä,ö»\t"ä,\nö"\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    files = sorted(str(path) for path in tmp_path.glob("?.*"))
    samples = [[sample["input_ids"].tolist() for sample in text_instruction(file, tokenizer)] for file in files]
    assert len(files) == 7
    assert all(sample == samples[0] for sample in samples)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("{}/trian.jsonl", "there is no data file .*; did you mean `train.jsonl`?"),
        ("{}/nowhere/train.jsonl", "there is no directory .*nowhere"),
        ("{}/*.csv", "no data file matches"),
        ("{}/notes.txt", "of a kind that is not read"),
        ("{}/empty", "holds no data file"),
        ("some/dataset", "no file or directory some/dataset here.*automodel-huggingface\\[hub\\]"),
        ([], "data_path is empty"),
        (["{}/train.jsonl", "{}/train.jsonl"], "names a file twice"),
    ],
)
def test_data_that_is_not_there_is_told(path, why, tokenizer, write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if the extra `hub` were not installed
    write(GOOD)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    filled = path.format(tmp_path) if isinstance(path, str) else [part.format(tmp_path) for part in path]
    with pytest.raises(InputError, match=why):
        text_instruction(filled, tokenizer)


def test_an_empty_file_is_an_error(tokenizer, write):
    for streaming in (False, True):
        with pytest.raises(InputError, match="empty, there are no rows"):
            text_instruction(write(), tokenizer, streaming=streaming)


def test_a_directory_of_several_splits_needs_one_named(tokenizer, write, tmp_path):
    write(GOOD, name="data/train-0.jsonl")
    write(GOOD, GOOD, name="data/train-1.jsonl")
    write(GOOD, name="data/validation.jsonl")
    with pytest.raises(InputError, match=r"holds several splits .* choose one with `split:`"):
        text_instruction(str(tmp_path / "data"), tokenizer)
    assert len(text_instruction(str(tmp_path / "data"), tokenizer, split="train")) == 3
    assert len(text_instruction(str(tmp_path / "data" / "train-*.jsonl"), tokenizer)) == 3
    with pytest.raises(InputError, match=r"no file of split tain; did you mean `train`?"):
        text_instruction(str(tmp_path / "data"), tokenizer, split="tain")


def test_wrong_options_are_told(tokenizer, write):
    path = write(GOOD)
    with pytest.raises(InputError, match=r"column_mapping: 'instuction' is no column .* did you mean `instruction`"):
        text_instruction(path, tokenizer, column_mapping={"instuction": "a"})
    with pytest.raises(
        InputError, match=r"train.jsonl:1: no column `outpt` \(column_mapping: answer\); did you mean `output`"
    ):
        column_mapped(path, {"question": "instruction", "answer": "outpt"}, tokenizer)
    with pytest.raises(InputError, match="no column `messages`"):
        chat(path, tokenizer)
    with pytest.raises(InputError, match="shuffle_buffer is for streaming"):
        text_instruction(path, tokenizer, shuffle_buffer=10)
    with pytest.raises(InputError, match="limit_dataset_samples: 0"):
        text_instruction(path, tokenizer, limit_dataset_samples=0)
    with pytest.raises(InputError, match="max_length: 1"):
        text_instruction(path, tokenizer, max_length=1)
