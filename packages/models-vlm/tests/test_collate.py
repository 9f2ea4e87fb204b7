"""Micro-batches of conversations with images: the processor's own tensors, and loss on what the assistant says."""

import pickle

import pytest
import torch
from automodel import InputError
from automodel_huggingface.conversations import Conversation
from automodel_models_vlm.collate import conversations
from automodel_models_vlm.image_text import image_text_pairs
from PIL import Image

FAMILIES = ["gemma3", "qwen3_vl", "smolvlm", "llava"]
MARKERS = {
    "gemma3": "<start_of_turn>model\n",
    "qwen3_vl": "<|im_start|>assistant\n",
    "smolvlm": "Assistant:",
    "llava": "ASSISTANT:",
}
WRITTEN = {
    "gemma3": "{}<end_of_turn>",
    "qwen3_vl": "{}<|im_end|>",
    "smolvlm": " {}<end_of_utterance>",
    "llava": " {}</s>",
}
SIZES = [(60, 50), (80, 50), (50, 90)]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def processor(family, processor_of):
    return processor_of(family)


def sample(*turns, place="train.jsonl:1", **last):
    """Turns of user and assistant; each `*` in a text is an image."""
    messages, num_images = [], 0
    for number, turn in enumerate(turns):
        content = []
        for position, text in enumerate(turn.split("*")):
            content += [{"type": "image"}] * (position > 0) + [{"type": "text", "text": text}] * bool(text)
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
        num_images += turn.count("*")
    messages[-1] |= last
    images = [Image.new("RGB", SIZES[number % 3], (70 * number, 30, 200)) for number in range(num_images)]
    return {"conversation": Conversation(messages), "images": images, "place": place}


ONE = sample("*Which digit is this?", "Seven")
TWO = sample("*Which digit is this?", "Seven, I think.\nYes!", "Sure?", "«Yes», total 5,000", place="train.jsonl:2")
MANY = sample("**Which?", "The first", "And * or *these?", "ICE TEA", "*", "ROTI BAKAR: äöü 🙂", place="train.jsonl:3")


def learnt(processor, batch):
    """Of each row the stretches that carry loss, decoded."""
    stretches = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert all(label in (token, -100) for token, label in zip(ids, labels, strict=True))
        inside = [label != -100 for label in labels]
        starts = [i for i, now in enumerate(inside) if now and not (i and inside[i - 1])]
        ends = [i + 1 for i, now in enumerate(inside) if now and not (i + 1 < len(inside) and inside[i + 1])]
        stretches.append([processor.decode(ids[start:end]) for start, end in zip(starts, ends, strict=True)])
    return stretches


def where(processor, row):
    """What stands before each learnt stretch of a batch's only row, decoded."""
    [ids], [labels] = row["input_ids"].tolist(), row["labels"].tolist()
    starts = [i for i, label in enumerate(labels) if label != -100 and labels[i - 1] == -100]
    return [processor.decode(ids[:start]) for start in starts]


def said(family, *answers):
    return [WRITTEN[family].format(answer) for answer in answers]


def test_loss_is_on_what_the_assistant_says_with_its_end(family, processor):
    batch = conversations(processor)([ONE, TWO, MANY])
    assert learnt(processor, batch) == [
        said(family, "Seven"),
        said(family, "Seven, I think.\nYes!", "«Yes», total 5,000"),
        said(family, "The first", "ICE TEA", "ROTI BAKAR: äöü 🙂"),
    ]


def test_every_answer_is_learnt_behind_the_question_to_go_on(family, processor):
    for row in (ONE, TWO, MANY):
        heads = where(processor, conversations(processor)([row]))
        assert len(heads) == len(row["conversation"].messages) // 2
        assert all(head.endswith(MARKERS[family]) for head in heads)


def test_an_answer_that_the_user_has_written_too_is_learnt_at_its_own_place(family, processor):
    batch = conversations(processor)([sample("*Seven", "Seven", "Is it Seven Seven?", "Seven")])
    assert learnt(processor, batch) == [said(family, "Seven", "Seven")]
    assert [head.endswith(MARKERS[family]) for head in where(processor, batch)] == [True, True]


def check_repeated(family, processor, later):
    batch = conversations(processor)([sample("*Which?", "Seven", later, "Right")])
    assert learnt(processor, batch) == [said(family, "Seven", "Right")]
    assert [head.endswith(MARKERS[family]) for head in where(processor, batch)] == [True, True]


def test_an_answer_that_the_user_repeats_behind_an_image_is_learnt_at_its_own_place(family, processor):
    check_repeated(family, processor, "*Seven")


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl", "smolvlm"])
def test_an_answer_that_the_user_repeats_is_learnt_at_its_own_place(family, processor_of):
    check_repeated(family, processor_of(family), "Seven")


def test_a_turn_of_weight_0_carries_no_loss(family, processor):
    first, last = sample("*Which?", "Seven", "Sure?", "Yes"), sample("*Which?", "Seven", "Sure?", "Yes", weight=0)
    first["conversation"].messages[1]["weight"] = 0
    batch = conversations(processor)([first, last])
    assert learnt(processor, batch) == [said(family, "Yes"), said(family, "Seven")]


def test_a_turn_of_weight_0_is_not_taken_for_another_that_says_the_same(family, processor):
    rows = [sample("*Which?", "Seven", "*Which?", "Seven") for _ in range(2)]
    rows[0]["conversation"].messages[1]["weight"] = 0
    rows[1]["conversation"].messages[3]["weight"] = 0
    both = where(processor, conversations(processor)([sample("*Which?", "Seven", "*Which?", "Seven")]))
    assert [where(processor, conversations(processor)([row])) for row in rows] == [both[1:], both[:1]]


def test_a_conversation_that_the_assistant_begins_is_learnt_whole(processor_of):
    for family in ("gemma3", "smolvlm"):
        row = sample("*Which?", "Seven")
        row["conversation"].messages.insert(0, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]})
        batch = conversations(processor_of(family))([row])
        assert learnt(processor_of(family), batch) == [said(family, "Hello", "Seven")]


def test_a_row_longer_than_the_model_reads_is_an_error_by_default(processor):
    with pytest.raises(InputError, match=r"more than what the model reads: \d+"):
        conversations(processor)([sample("*Which?", "Seven " * 20_000)])


def test_a_processor_of_text_is_told_what_it_is_for(processor):
    with pytest.raises(InputError, match="the model reads only text: use model: image-text-to-text"):
        conversations(processor.tokenizer)


def test_a_batch_of_one_is_what_the_processor_makes_of_the_conversation(family, processor):
    for row in (ONE, TWO, MANY):
        images = iter(row["images"])
        messages = [
            {
                "role": message["role"],
                "content": [
                    {**part, "image": next(images)} if part["type"] == "image" else part for part in message["content"]
                ],
            }
            for message in row["conversation"].messages
        ]
        expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        batch = conversations(processor)([row])
        assert batch.keys() == expected.keys() | {"labels"}
        assert {"input_ids", "attention_mask", "pixel_values"} <= expected.keys()
        for name, value in expected.items():
            assert torch.equal(batch[name], value), name


def test_padding_is_on_the_right_and_carries_no_loss(processor):
    collate = conversations(processor)
    rows = [ONE, TWO, MANY]
    batch = collate(rows)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) == 3
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = collate([row])
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[name][number, :length], alone[name][0]), name
        assert (batch["input_ids"][number, length:] == processor.tokenizer.pad_token_id).all()
        assert (batch["labels"][number, length:] == -100).all()
        assert (batch["attention_mask"][number, length:] == 0).all()


def test_the_length_is_a_multiple_when_asked(processor):
    plain, rounded = (conversations(processor, pad_to_multiple_of=number)([ONE, TWO]) for number in (None, 64))
    length = plain["labels"].shape[1]
    assert length % 64
    assert rounded["labels"].shape == rounded["input_ids"].shape == (2, -(-length // 64) * 64)
    assert torch.equal(rounded["labels"][:, :length], plain["labels"])
    assert (rounded["labels"][:, length:] == -100).all()


def test_the_right_marker_changes_nothing(family, processor):
    by_marker, by_template = (
        conversations(processor, start_of_response_token=marker)([ONE, TWO, MANY]) for marker in (MARKERS[family], None)
    )
    assert torch.equal(by_marker["labels"], by_template["labels"])


def test_what_belongs_to_the_marker_is_not_learnt(processor_of):
    processor = processor_of("llava")
    batch = conversations(processor, start_of_response_token="ASSISTANT: ")([ONE, TWO])
    assert learnt(processor, batch) == [["Seven</s>"], ["Seven, I think.\nYes!</s>", "«Yes», total 5,000</s>"]]


def test_an_answer_that_quotes_the_marker_is_learnt_whole(processor_of):
    processor = processor_of("llava")
    batch = conversations(processor, start_of_response_token="ASSISTANT: ")([sample("*?", "It says ASSISTANT: 7")])
    assert learnt(processor, batch) == [["It says ASSISTANT: 7</s>"]]


def test_a_wrong_marker_is_told_with_the_text(family, processor):
    collate = conversations(processor, start_of_response_token="[/INST]")
    with pytest.raises(InputError) as error:
        collate([ONE, TWO])
    assert "'[/INST]' does not stand before an answer of train.jsonl:1" in str(error.value)
    assert "Which digit is this?" in str(error.value)
    assert repr(said(family, "Seven")[0]) in str(error.value)


def test_a_row_that_is_too_long_is_told(processor):
    lengths = [conversations(processor)([row])["input_ids"].shape[1] for row in (ONE, TWO)]
    exact = conversations(processor, max_length=lengths[1])([ONE, TWO])
    assert exact["input_ids"].shape[1] == lengths[1] > lengths[0]
    with pytest.raises(InputError, match=rf"train.jsonl:2 has {lengths[1]} tokens .* max_length: {lengths[1] - 1}"):
        conversations(processor, max_length=lengths[1] - 1)([ONE, TWO])


def test_images_that_the_processor_refuses_are_told(processor):
    with pytest.raises(InputError, match=r"refuses the images or texts of train\.jsonl:1"):
        conversations(processor)([{**ONE, "images": []}])


def test_a_conversation_that_the_template_refuses_is_told(processor_of):
    processor = pickle.loads(pickle.dumps(processor_of("gemma3")))
    processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"train\.jsonl:1: the chat template refuses .*roles must alternate"):
        conversations(processor)([ONE])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_length": 1}, "max_length: 1 leaves nothing"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be at least 1"),
        ({"start_of_response_token": ""}, "start_of_response_token is empty"),
    ],
)
def test_options_out_of_range_are_told(options, why, processor_of):
    with pytest.raises(InputError, match=why):
        conversations(processor_of("gemma3"), **options)


def test_a_processor_without_a_chat_template_is_refused(processor_of):
    processor = pickle.loads(pickle.dumps(processor_of("llava")))
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(InputError, match="the processor has no chat template"):
        conversations(processor)


def test_a_collate_function_can_be_sent_to_data_workers(processor):
    collate = conversations(processor, max_length=4000)
    expected = collate([ONE, MANY])
    for sent in (conversations(processor, max_length=4000), collate):  # before its first batch and after
        batch = pickle.loads(pickle.dumps(sent))([ONE, MANY])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], value) for name, value in expected.items())


def test_samples_of_a_data_set_become_batches_by_default(family, processor, write, picture):
    picture("red")
    dataset = image_text_pairs(write({"image": "red.png", "text": "Red"}, {"image": "red.png", "text": "Seven"}))
    batch = dataset.default_collate(processor)([dataset[0], dataset[1]])
    assert learnt(processor, batch) == [said(family, "Red"), said(family, "Seven")]
