"""What rows with images say: messages with images inside or beside them, CORD-v2, and pairs by column names."""

import base64
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from automodel import InputError
from automodel_models_vlm.image_text import cord_v2, image_chat, image_text_pairs, medpix, rdr

TEXT = {"type": "text", "text": "Which colour?"}
ANSWER = {"role": "assistant", "content": "This one."}


def asked(*parts):
    return [{"role": "user", "content": list(parts)}, ANSWER]


def only(dataset):
    assert len(dataset) == 1
    return dataset[0]


def data_url(path):
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("key", ["image", "path", "url"])
@pytest.mark.parametrize("form", ["relative", "absolute", "file", "data"])
def test_a_part_holds_its_image_as_path_or_base64(key, form, write, picture, seen, told):
    path = picture("red", "pictures/red.png")
    forms = {"relative": "pictures/red.png", "absolute": str(path), "file": f"file://{path}", "data": data_url(path)}
    sample = only(image_chat(write({"messages": asked({"type": "image", key: forms[form]}, TEXT)})))
    assert seen(sample) == ["red"]
    assert told(sample) == ["user: [image]Which colour?", "assistant: This one."]


@pytest.mark.parametrize("kind", ["image_url", "input_image"])
def test_image_url_of_openai_is_read_in_both_its_forms(kind, write, picture, seen):
    red, blue = data_url(picture("red")), data_url(picture("blue"))
    parts = [{"type": kind, "image_url": {"url": red, "detail": "low"}}, {"type": kind, "image_url": blue}]
    assert seen(only(image_chat(write({"messages": asked(*parts, TEXT)})))) == ["red", "blue"]


def test_parts_are_named_as_in_the_responses_of_openai_too(write, picture, seen, told):
    picture("red")
    parts = [{"type": "input_image", "image_url": "red.png"}, {"type": "input_text", "text": "Which?"}]
    answer = {"role": "assistant", "content": [{"type": "output_text", "text": "Red"}]}
    row = only(image_chat(write({"messages": [{"role": "user", "content": parts}, answer]})))
    assert (seen(row), told(row)) == (["red"], ["user: [image]Which?", "assistant: Red"])


def test_an_image_that_the_assistant_is_to_write_is_told_by_line(write, picture):
    picture("red")
    messages = [{"role": "user", "content": "Draw"}, {"role": "assistant", "content": "<image>"}]
    with pytest.raises(InputError, match=r"train.jsonl:1: an image in a turn of the assistant|train.jsonl:1: .*empty"):
        image_chat(write({"messages": messages, "image": "red.png"}))
    messages[1]["content"] = "Here: <image>"
    with pytest.raises(InputError, match=r"train.jsonl:1: an image in a turn of the assistant"):
        image_chat(write({"messages": messages, "image": "red.png"}))


def test_images_stand_where_the_text_has_them(write, picture, seen, told):
    for colour in ("red", "blue", "white"):
        picture(colour)
    row = {
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A colour."},
            {"from": "human", "value": "And <image> beside <image>"},
            {"from": "gpt", "value": "Two more."},
        ],
        "images": ["red.png", "blue.png", "white.png"],
    }
    sample = only(image_chat(write(row)))
    assert seen(sample) == ["red", "blue", "white"]
    assert told(sample) == [
        "user: [image]What is this?",
        "assistant: A colour.",
        "user: And [image] beside [image]",
        "assistant: Two more.",
    ]


def test_newlines_around_images_are_left_to_the_template(write, picture, told):
    picture("red")
    path = write(
        {"messages": asked({"type": "text", "text": "One:\n<image>\ntwo:\n<image>\n?\n"}), "images": ["red.png"] * 2}
    )
    assert told(only(image_chat(path)))[0] == "user: One:[image]two:[image]?\n"


def test_places_without_an_image_take_theirs_in_turn_between_those_that_have_one(write, picture, seen):
    for colour in ("red", "blue", "white"):
        picture(colour)
    parts = [{"type": "image"}, {"type": "image", "image": "blue.png"}, {"type": "text", "text": "<image> ?"}]
    row = {"messages": asked(*parts), "images": ["red.png"], "image": "white.png"}
    assert seen(only(image_chat(write(row)))) == ["red", "blue", "white"]


def test_images_without_a_place_stand_before_the_first_message_of_the_user(write, picture, seen, told):
    picture("red"), picture("blue")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}, ANSWER]
    sample = only(image_chat(write({"messages": messages, "images": ["red.png", "blue.png"]})))
    assert seen(sample) == ["red", "blue"]
    assert told(sample)[:2] == ["system: Be brief.", "user: [image][image]Which?"]


def test_the_columns_of_messages_and_images_can_be_named(write, picture, seen):
    picture("red"), picture("blue")
    path = write({"talk": asked(TEXT), "photo": "red.png", "image": "blue.png"})
    assert seen(only(image_chat(path, column="talk", image_column="photo"))) == ["red"]
    with pytest.raises(InputError, match=r"train.jsonl:1: no column `tolk`; did you mean `talk`"):
        image_chat(path, column="tolk")


def test_a_system_prompt_stands_before_conversations_without_one(write, picture, told):
    picture("red")
    own = [{"role": "system", "content": "My own."}, *asked(TEXT)]
    dataset = image_chat(
        write({"messages": asked(TEXT), "image": "red.png"}, {"messages": own, "image": "red.png"}),
        system_prompt="Be kind.",
    )
    assert [told(sample)[0] for sample in dataset] == ["system: Be kind.", "system: My own."]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": asked(TEXT)}, "no image: rows of text only belong to a model of text"),
        ({"messages": [{"role": "user", "content": "<image>"}], "image": "red.png"}, "no turn of the assistant"),
        (
            {"messages": [asked(TEXT)[0], {**ANSWER, "weight": 0}], "image": "red.png"},
            "no turn of the assistant to learn from",
        ),
        ({"messages": [ANSWER], "image": "red.png"}, "1 images in columns, and no place for them"),
        ({"messages": asked({"type": "image"}, TEXT)}, "0 images for 1 places"),
        ({"messages": asked({"type": "image"}, TEXT), "images": ["red.png"] * 2}, "2 images for 1 places"),
        (
            {"messages": asked({"type": "image", "image": "red.png"}, TEXT), "image": "red.png"},
            "1 images in columns, and no place for them",
        ),
        (
            {"messages": asked({"type": "audio"}, TEXT)},
            r"message 1 of `messages` \(user\) holds a part that is neither",
        ),
        ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "the content of message 1 .* is a number"),
        ({"messages": [{"role": "usr", "content": "x"}, ANSWER]}, "unknown role 'usr'; did you mean `user`"),
        ({"messages": []}, "the column `messages` is an empty list"),
        ({"text": "x"}, "no column `messages`"),
        ("{", "broken JSON at column 2"),
    ],
)
def test_rows_that_are_no_conversation_about_images_are_told_by_line(row, why, write, picture):
    picture("red")
    good = {"messages": asked(TEXT), "image": "red.png"}
    with pytest.raises(InputError, match=rf"train\.jsonl:2: .*{why}"):
        image_chat(write(good, row, good))


PART = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
NESTED = datasets.Features(
    {"messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(PART)})}
)


def nested_parquet(path, data):
    parts = [{"type": "image", "image": {"bytes": data, "path": None}}, {"type": "text", "text": "Which colour?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "This one."}]}
    rows = [[{"role": "user", "content": [{**dict.fromkeys(PART), **part} for part in parts]}, answer]]
    rows[0][1]["content"][0]["image"] = None
    datasets.Dataset.from_dict({"messages": rows}, features=NESTED).to_parquet(str(path))
    return str(path)


def test_parts_of_parquet_hold_images(tmp_path, picture, seen, told):
    sample = only(image_chat(nested_parquet(tmp_path / "nested.parquet", picture("blue").read_bytes())))
    assert seen(sample) == ["blue"]
    assert told(sample) == ["user: [image]Which colour?", "assistant: This one."]


def test_a_broken_image_inside_parts_of_parquet_is_told_by_row_when_it_is_taken(tmp_path):
    dataset = image_chat(nested_parquet(tmp_path / "nested.parquet", b"no image"))
    with pytest.raises(InputError, match=r"nested\.parquet row 1: the image of 8 bytes is broken"):
        dataset[0]


def test_columns_of_parquet_hold_images(tmp_path, picture, seen):
    red, blue = picture("red"), picture("blue")
    features = datasets.Features(
        {
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            "images": datasets.List(datasets.Image()),
        }
    )
    messages = [{"role": "user", "content": "<image> or <image>?"}, ANSWER]
    rows = {"messages": [messages], "images": [[str(blue), str(red)]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    assert seen(only(image_chat(str(tmp_path / "a.parquet")))) == ["blue", "red"]


@pytest.mark.parametrize("form", ["bytes", "struct", "list"])
def test_parquet_without_features_of_datasets_holds_images(form, tmp_path, picture, seen):
    data = picture("blue").read_bytes()
    struct = {"bytes": data, "path": "blue.png"}
    value = {"bytes": data, "struct": struct, "list": [struct, struct]}[form]
    pq.write_table(pa.table({"image": [value], "text": ["a"]}), tmp_path / "plain.parquet")
    sample = only(image_text_pairs(str(tmp_path / "plain.parquet")))
    assert seen(sample) == ["blue"] * (2 if form == "list" else 1)


def json2token(value):
    """Donut's own (donut/model.py), without the special tokens of its tokenizer."""
    if type(value) is dict:
        if len(value) == 1 and "text_sequence" in value:
            return value["text_sequence"]
        output = ""
        for key in sorted(value.keys(), reverse=True):
            output += rf"<s_{key}>" + json2token(value[key]) + rf"</s_{key}>"
        return output
    if type(value) is list:
        return r"<sep/>".join([json2token(item) for item in value])
    return str(value)


RECEIPTS = [
    {"menu": [{"nm": "ICE TEA", "cnt": "2", "price": "10,000"}, {"nm": "Latte"}], "total": {"total_price": "15,000"}},
    {"menu": {"nm": "Café", "sub": [{"nm": "x"}, {"nm": "y"}]}, "void": None, "num": 3, "paid": True},
    {"text_sequence": "read as it stands"},
    [{"a": "1"}, {"b": "2"}],
]


def answers(dataset, told):
    return [told(sample)[-1].removeprefix("assistant: ") for sample in dataset]


def test_receipts_are_written_as_donut_writes_them(write, picture, told):
    picture("red")
    rows = [{"image": "red.png", "ground_truth": json.dumps({"gt_parse": receipt})} for receipt in RECEIPTS]
    dataset = cord_v2(write(*rows))
    assert answers(dataset, told) == [json2token(receipt) for receipt in RECEIPTS]
    assert told(dataset[0])[0] == "user: [image]Describe this image."


def test_receipts_are_written_as_json_when_asked(write, picture, told):
    picture("red")
    rows = [{"image": "red.png", "ground_truth": {"gt_parse": receipt}} for receipt in RECEIPTS]
    dataset = cord_v2(write(*rows), target="json", prompt="Read it.")
    assert [json.loads(answer) for answer in answers(dataset, told)] == RECEIPTS
    assert "Café" in answers(dataset, told)[1]
    assert told(dataset[0])[0] == "user: [image]Read it."


def test_of_several_parses_the_first_is_learnt(write, picture, told):
    picture("red")
    path = write({"image": "red.png", "ground_truth": json.dumps({"gt_parses": [{"a": "1"}, {"a": "2"}]})})
    assert answers(cord_v2(path), told) == ["<s_a>1</s_a>"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"image": "red.png"}, "no column `ground_truth`"),
        ({"image": "red.png", "ground_truth": None}, "the column `ground_truth` is null"),
        ({"image": "red.png", "ground_truth": "{"}, "the column `ground_truth` is text, but no JSON"),
        ({"image": "red.png", "ground_truth": "[]"}, "neither `gt_parse` nor `gt_parses`"),
        ({"image": "red.png", "ground_truth": "{}"}, "neither `gt_parse` nor `gt_parses`"),
        ({"image": "red.png", "ground_truth": {"gt_parses": []}}, "neither `gt_parse` nor `gt_parses`"),
        ({"image": "red.png", "ground_truth": {"gt_parses": {"a": 1}}}, "gt_parses"),
        ({"image": None, "ground_truth": {"gt_parse": {"a": 1}}}, "the column `image` is null"),
        ({"ground_truth": {"gt_parse": {"a": 1}}}, "no column `image`"),
    ],
)
def test_broken_ground_truth_is_told_by_line(row, why, write, picture):
    picture("red")
    good = {"image": "red.png", "ground_truth": {"gt_parse": {"a": 1}}}
    with pytest.raises(InputError, match=rf"train\.jsonl:2: .*{why}"):
        cord_v2(write(good, row))


def test_pairs_are_read_by_the_names_of_their_columns(write, picture, seen, told):
    picture("red"), picture("blue")
    path = write({"photo": ["red.png", "blue.png"], "ask": "Which digit?", "label": 7})
    sample = only(image_text_pairs(path, "photo", "label", "ask", system_prompt="Be brief."))
    assert seen(sample) == ["red", "blue"]
    assert told(sample) == ["system: Be brief.", "user: [image][image]Which digit?", "assistant: 7"]
    sample = only(image_text_pairs(path, "photo", "label", prompt="Read it."))
    assert told(sample) == ["user: [image][image]Read it.", "assistant: 7"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"image": "red.png", "txt": "a"}, "no column `text`; did you mean `txt`"),
        ({"image": "red.png", "text": " "}, "the column `text` is empty"),
        ({"image": "red.png", "text": ["a"]}, "the column `text` is a list, not text"),
        ({"image": [], "text": "a"}, "no image: rows of text only"),
        ({"image": 3, "text": "a"}, "an image is a number, not a path"),
    ],
)
def test_rows_that_are_no_pair_are_told_by_line(row, why, write, picture):
    picture("red")
    with pytest.raises(InputError, match=rf"train\.jsonl:2: {why}"):
        image_text_pairs(write({"image": "red.png", "text": "a"}, row))


def test_rdr_asks_for_a_description(write, picture, told):
    picture("red")
    path = write({"image": "red.png", "text": "A lamp."})
    assert told(only(rdr(path))) == ["user: [image]Describe accurately the given image.", "assistant: A lamp."]


def test_medpix_asks_the_question_of_the_row(write, picture, seen, told):
    picture("red")
    sample = only(medpix(write({"image_id": "red.png", "question": "Which organ?", "answer": "The lung."})))
    assert seen(sample) == ["red"]
    assert told(sample) == ["user: [image]Which organ?", "assistant: The lung."]
