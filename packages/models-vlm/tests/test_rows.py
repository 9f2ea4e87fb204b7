"""Rows with images from every kind of file: where each came from, what is read, and what is left out."""

import gzip
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from automodel import InputError, notices
from automodel_models_vlm.image_text import image_chat, image_text_pairs
from PIL import Image


def pair(text, image="red.png"):
    return {"image": image, "text": text}


def answers(dataset):
    return [sample["conversation"].messages[-1]["content"][0]["text"] for sample in dataset]


def parquet(path, *texts, image=True):
    """A table with an image for each text, or without one for those that are None."""
    picture = Image.new("RGB", (8, 8), "red") if image else None
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [picture] * len(texts), "text": list(texts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return str(path)


def test_every_kind_of_text_file_gives_the_same_samples(tmp_path, picture, seen, told):
    picture("red"), picture("blue")
    messages = [
        [{"role": "user", "content": f"Which, {name}?"}, {"role": "assistant", "content": f"«{name}»,\nyes"}]
        for name in ("a", "ä")
    ]
    rows = [{"messages": messages[0], "image": "red.png"}, {"messages": messages[1], "image": "blue.png"}]
    lines = "\n".join(json.dumps(row) for row in rows)
    cells = [json.dumps(one).replace('"', '""') for one in messages]
    table = [("image", "messages"), ("red.png", f'"{cells[0]}"'), ("blue.png", f'"{cells[1]}"')]
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines + "\n\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    (tmp_path / "c.json").write_text(lines, encoding="utf-8")
    (tmp_path / "d.csv").write_text("\n".join(",".join(row) for row in table), encoding="utf-8")
    (tmp_path / "e.tsv").write_text("\n".join("\t".join(row) for row in table), encoding="utf-8")
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for file in sorted(tmp_path.glob("?.*")):
        dataset = image_chat(str(file))
        assert [seen(sample) for sample in dataset] == [["red"], ["blue"]], file
        assert [told(sample) for sample in dataset] == [
            ["user: [image]Which, a?", "assistant: «a»,\nyes"],
            ["user: [image]Which, ä?", "assistant: «ä»,\nyes"],
        ], file


def test_a_sample_knows_the_line_it_came_from(tmp_path, write, picture):
    picture("red")
    one = write(pair("a"), "", pair("b"), name="one.jsonl")
    (tmp_path / "two.json").write_text(json.dumps([pair("c"), pair("d")], indent=1), encoding="utf-8")
    (tmp_path / "three.csv").write_text('image,text\nred.png,"e\nf"\nred.png,g\n', encoding="utf-8")
    dataset = image_text_pairs([one, str(tmp_path / "two.json"), str(tmp_path / "three.csv")])
    places = [sample["place"].removeprefix(f"{tmp_path}/") for sample in dataset]
    assert places == ["one.jsonl:1", "one.jsonl:3", "two.json:2", "two.json:6", "three.csv:2", "three.csv:4"]
    assert answers(dataset) == ["a", "b", "c", "d", "e\nf", "g"]


def test_a_sample_knows_the_row_and_the_parquet_file_it_came_from(tmp_path):
    files = [parquet(tmp_path / "b.parquet", "a", "b"), parquet(tmp_path / "a.parquet", "c", "d", "e")]
    dataset = image_text_pairs(files)
    assert answers(dataset) == ["a", "b", "c", "d", "e"]
    places = [(file, row) for file, num_rows in zip(files, (2, 3), strict=True) for row in range(1, num_rows + 1)]
    assert [sample["place"] for sample in dataset] == [f"{file} row {row}" for file, row in places]


def test_bad_rows_of_parquet_are_told_by_file_and_row(tmp_path):
    files = [parquet(tmp_path / "a.parquet", "a", None), parquet(tmp_path / "b.parquet", "b", "", "c")]
    with pytest.raises(InputError) as error:
        image_text_pairs(files)
    assert f"{files[0]} row 2: the column `text` is null" in str(error.value)
    assert f"{files[1]} row 2: the column `text` is empty" in str(error.value)


def test_a_row_of_parquet_without_its_image_is_bad(tmp_path):
    path = parquet(tmp_path / "a.parquet", "a", image=False)
    with pytest.raises(InputError, match=r"a\.parquet row 1: the column `image` is null"):
        image_text_pairs(path)


def test_a_directory_of_parquet_files_is_read_by_split(tmp_path):
    parquet(tmp_path / "data" / "train-00000.parquet", "a")
    parquet(tmp_path / "data" / "train-00001.parquet", "b", "c")
    parquet(tmp_path / "data" / "validation-00000.parquet", "d")
    assert answers(image_text_pairs(str(tmp_path), split="train")) == ["a", "b", "c"]
    assert answers(image_text_pairs(str(tmp_path), split="validation")) == ["d"]


def test_parquet_files_and_others_are_two_data_sets(tmp_path, write):
    parquet(tmp_path / "a.parquet", "a")
    with pytest.raises(InputError, match=r"Parquet files and others \(.*b\.jsonl\): make two data sets"):
        image_text_pairs([str(tmp_path / "a.parquet"), write(pair("b"), name="b.jsonl")])


def saved(directory, **splits):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    picture = Image.new("RGB", (8, 8), "blue")
    made = {
        name: datasets.Dataset.from_dict({"image": [picture] * len(texts), "text": texts}, features=features)
        for name, texts in splits.items()
    }
    (datasets.DatasetDict(made) if len(made) > 1 else next(iter(made.values()))).save_to_disk(str(directory))
    return str(directory)


def test_a_directory_that_datasets_has_saved_is_read(tmp_path, seen):
    path = saved(tmp_path / "saved", train=["a", "b"])
    dataset = image_text_pairs(path, split="train")
    assert answers(dataset) == ["a", "b"]
    assert seen(dataset[1]) == ["blue"]
    assert dataset[1]["place"] == f"{path} row 2"


def test_of_saved_splits_the_one_named_is_read(tmp_path):
    path = saved(tmp_path / "saved", train=["a", "b"], test=["c"])
    assert answers(image_text_pairs(path, split="test")) == ["c"]
    for wrong in (None, "tset"):
        with pytest.raises(InputError, match="holds the splits train, test: choose one with `split:`"):
            image_text_pairs(path, split=wrong)


def test_a_saved_directory_that_is_broken_is_told(tmp_path):
    path = saved(tmp_path / "saved", train=["a"])
    (tmp_path / "saved" / "dataset_info.json").unlink()
    with pytest.raises(InputError, match="saved"):
        image_text_pairs(path)


def test_paths_in_a_saved_directory_start_from_it(tmp_path, picture, seen):
    picture("red", "saved/img/red.png")
    data = datasets.Dataset.from_dict({"image": ["img/red.png"], "text": ["a"]})
    data.save_to_disk(tmp_path / "saved")
    assert seen(image_text_pairs(str(tmp_path / "saved"))[0]) == ["red"]


def test_a_path_in_a_column_of_images_is_looked_for(tmp_path, picture, seen):
    picture("red", "img/red.png")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for name, paths in (("good", ["img/red.png"]), ("bad", ["img/red.png", "img/none.png"]), ("null", [None])):
        images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
        pq.write_table(pa.table({"image": images, "text": ["a"] * len(paths)}), tmp_path / f"{name}.parquet")
    assert seen(image_text_pairs(str(tmp_path / "good.parquet"))[0]) == ["red"]
    with pytest.raises(InputError, match=r"bad.parquet row 2: there is no image file .*none.png"):
        image_text_pairs(str(tmp_path / "bad.parquet"))
    with pytest.raises(InputError, match=r"null.parquet row 1: .*null"):
        image_text_pairs(str(tmp_path / "null.parquet"))


def test_a_change_of_a_file_changes_what_is_read(tmp_path, write, picture):
    picture("red")
    for text in ("one", "two"):  # of one length, so that only the content tells
        assert answers(image_text_pairs(write(pair(text)))) == [text]
        assert answers(image_text_pairs(parquet(tmp_path / "rows.parquet", text))) == [text]
    stamp = os.stat(write(pair("old")))  # noqa: PTH116
    assert answers(image_text_pairs(str(tmp_path / "train.jsonl"))) == ["old"]
    os.utime(write(pair("new")), ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert answers(image_text_pairs(str(tmp_path / "train.jsonl"))) == ["new"]


def test_a_change_of_a_parquet_file_of_the_same_time_changes_what_is_read(tmp_path):
    for text in ("one", "two"):
        path = parquet(tmp_path / "rows.parquet", text)
        os.utime(path, (1e9, 1e9))  # as `cp --preserve` and unpacked archives have it
        assert answers(image_text_pairs(path)) == [text]


def test_rows_are_kept_in_the_cache_directory(cache, write, picture, tmp_path):
    picture("red")
    for path in (write(pair("a")), parquet(tmp_path / "rows.parquet", "a")):
        before = len(list(cache.rglob("*.arrow")))
        image_text_pairs(path)
        assert len(list(cache.rglob("*.arrow"))) > before


def test_a_cache_that_cannot_be_written_is_told(cache, write, picture):
    picture("red")
    cache.write_text("no directory")
    with pytest.raises(InputError, match="set AUTOMODEL_CACHE"):
        image_text_pairs(write(pair("a")))


def test_bad_rows_are_left_out_and_counted_when_asked(write, picture, capsys):
    picture("red")
    path = write(pair("a"), "{", pair(""), pair("b", "nowhere.png"), pair("c"))
    dataset = image_text_pairs(path, on_bad_row="skip")
    assert answers(dataset) == ["a", "c"]
    assert dataset[1]["place"] == f"{path}:5"
    note = capsys.readouterr().err
    assert "3 rows of the data set cannot be used and are left out" in note
    assert f"{path}:2: broken JSON" in note
    with notices.strictness(True), pytest.raises(InputError, match="left out"):
        image_text_pairs(path, on_bad_row="skip")


def test_no_usable_row_at_all_is_an_error(write):
    with pytest.raises(InputError, match="no row that can be used"):
        image_text_pairs(write("{", pair("a", "nowhere.png")), on_bad_row="skip")


def test_only_the_first_rows_are_looked_at_when_asked(write, picture):
    picture("red")
    path = write(pair("a"), pair("b"), "{")
    assert answers(image_text_pairs(path, limit_dataset_samples=2)) == ["a", "b"]
    with pytest.raises(InputError, match="limit_dataset_samples: 0"):
        image_text_pairs(path, limit_dataset_samples=0)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.jsonl", b"", "empty, there are no rows"),
        ("broken.json", b'[{"a": 1},\n{"a": }]', r"broken\.json:2: broken JSON at column 7"),
        ("latin.csv", b"image,text\ncaf\xe9,a\n", r"latin\.csv:2: not UTF-8 text"),
        ("bad.parquet", b"PAR1 and nothing more", r"bad\.parquet cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_told(name, content, why, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=why):
        image_text_pairs(str(tmp_path / name))


def test_an_empty_parquet_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"a\.parquet: empty, there are no rows"):
        image_text_pairs(parquet(tmp_path / "a.parquet"))


def test_a_file_that_is_not_there_is_told(tmp_path, write):
    write(pair("a"))
    with pytest.raises(InputError, match=r"there is no data file .*; did you mean `train\.jsonl`"):
        image_text_pairs(str(tmp_path / "trian.jsonl"))
