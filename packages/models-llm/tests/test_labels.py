"""Which text carries loss, for each format of rows and kind of chat template."""

import pytest
from automodel import InputError
from automodel_models_llm.text_instruction import chat, column_mapped, plain_text, text_instruction

END = "<|im_end|>"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "Of Norway?"},
    {"role": "assistant", "content": "Oslo  "},
]
# the shapes of real templates, cut down to what matters here
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # drops the reasoning of all turns but the last
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}U: {{ m.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
THINKS_FIRST = QWEN3.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
PLAIN_TURNS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages, please') }}{% endif %}" + MISTRAL
)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Capital of France?", "output": "Paris"},
        {"instruction": "Capital of France?", "input": "", "response": "Paris"},
        {"question": "Capital of France?", "answer": "Paris"},
        {"prompt": "Capital of France?", "completion": "Paris"},
        {"prompt": [{"role": "user", "content": "Capital of France?"}], "completion": [CHAT[2]]},
        {"messages": [{"role": "user", "content": "Capital of France?"}, CHAT[2]]},
        {"conversations": [{"from": "human", "value": "Capital of France?"}, {"from": "gpt", "value": "Paris"}]},
        {"messages": '[{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris"}]'},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Capital of France?"}]}, CHAT[2]]},
    ],
)
def test_every_format_of_one_answer_gives_the_same_sample(row, tokenizer, write, learnt, whole):
    [sample] = text_instruction(write(row), tokenizer, system_prompt="Be brief.")
    assert learnt(sample) == [f"Paris{END}"]
    assert whole(sample) == tokenizer.apply_chat_template(CHAT[:3], tokenize=False)


def test_the_tokens_of_a_conversation_are_those_of_the_tokenizer(tokenizer, write):
    [sample] = chat(write({"messages": CHAT}), tokenizer)
    assert sample["input_ids"].tolist() == tokenizer.apply_chat_template(CHAT)["input_ids"]


def test_every_turn_of_the_assistant_is_learnt_with_its_end_and_without_the_newline_after(tokenizer, write, learnt):
    [sample] = chat(write({"messages": CHAT}), tokenizer)
    assert learnt(sample) == [f"Paris{END}", f"Oslo  {END}"]


def test_a_turn_of_weight_zero_is_not_learnt(tokenizer, write, learnt):
    messages = [*CHAT[:2], {**CHAT[2], "weight": 0}, *CHAT[3:]]
    [sample] = chat(write({"messages": messages}), tokenizer)
    assert learnt(sample) == [f"Oslo  {END}"]


def test_assistant_turns_of_a_prompt_are_not_learnt(tokenizer, write, learnt):
    [sample] = text_instruction(write({"prompt": CHAT[:4], "completion": CHAT[4:]}), tokenizer)
    assert learnt(sample) == [f"Oslo  {END}"]


def test_input_follows_the_instruction_and_context_precedes_the_question(tokenizer, write, whole):
    rows = [
        {"instruction": "Translate.", "input": "Hund", "output": "dog"},
        {"question": "Who?", "context": "Ada wrote it.", "answer": "Ada"},
    ]
    first, second = text_instruction(write(*rows), tokenizer)
    assert f"user\nTranslate.\n\nHund{END}" in whole(first)
    assert f"user\nAda wrote it.\n\nWho?{END}" in whole(second)


def test_without_chat_template_the_answer_and_the_end_of_text_are_learnt(with_template, write, learnt, whole):
    rows = [{"prompt": "2 + 2 =", "completion": " 4"}, {"instruction": "Add 2 and 2.", "output": "4"}]
    first, second = text_instruction(write(*rows), with_template(None))
    assert (whole(first), learnt(first)) == (f"2 + 2 = 4{END}", [f" 4{END}"])
    assert (whole(second), learnt(second)) == (f"Add 2 and 2.\n4{END}", [f"4{END}"])


def test_texts_are_learnt_whole(tokenizer, write, learnt):
    path = write({"text": "Grüße aus 東京 🎉"})
    for dataset in (text_instruction(path, tokenizer), plain_text(path, tokenizer)):
        assert learnt(dataset[0]) == [f"Grüße aus 東京 🎉{END}"]


def test_answers_of_several_tokens_a_character_are_learnt_whole(tokenizer, write, learnt):
    [sample] = text_instruction(write({"prompt": "🎉東", "completion": "京🎉"}), tokenizer, use_chat_template=False)
    assert learnt(sample) == [f"京🎉{END}"]


def test_spaces_before_an_answer_belong_to_the_prompt(tokenizer, write, learnt):
    [sample] = text_instruction(write({"prompt": "x:   ", "completion": "1"}), tokenizer, use_chat_template=False)
    assert learnt(sample) == [f"1{END}"]


def test_loss_on_everything_when_asked(tokenizer, write):
    dataset = text_instruction(write({"question": "a", "answer": "b"}), tokenizer, answer_only_loss_mask=False)
    assert (dataset[0]["labels"] == dataset[0]["input_ids"]).all()


def test_column_mapping_names_columns_of_the_data(tokenizer, write, learnt, capsys):
    path = write({"frage": "Hauptstadt?", "antwort": "Paris", "text": "not this"})
    dataset = column_mapped(path, {"question": "frage", "answer": "antwort"}, tokenizer)
    assert learnt(dataset[0]) == [f"Paris{END}"]
    assert capsys.readouterr().err == ""
    dataset = column_mapped(path, {"question": "frage", "answer": "antwort"}, tokenizer, start_of_turn_token="x")
    assert learnt(dataset[0]) == [f"Paris{END}"]
    assert "note: start_of_turn_token: x has no effect here" in capsys.readouterr().err
    assert learnt(text_instruction(path, tokenizer, column_mapping={"text": "text"})[0]) == [f"not this{END}"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (MISTRAL, [f" Paris{END}", f" Oslo  {END}"]),
        (MARKED, [f"Paris{END}", f"Oslo  {END}"]),
        (PLAIN_TURNS, [" Paris\n", " Oslo  \n"]),
    ],
)
def test_turns_are_found_in_templates_of_all_kinds(template, expected, with_template, write, learnt):
    [sample] = chat(write({"messages": CHAT[1:]}), with_template(template))
    assert learnt(sample) == expected


def test_marked_turns_can_be_left_out_too(with_template, write, learnt):
    messages = [CHAT[1], {**CHAT[2], "weight": 0}, *CHAT[3:]]
    [sample] = chat(write({"messages": messages}), with_template(MARKED))
    assert learnt(sample) == [f"Oslo  {END}"]


def test_reasoning_that_the_template_drops_is_not_learnt(with_template, write, learnt, whole):
    messages = [
        CHAT[1],
        {"role": "assistant", "content": "<think>France...</think>\nParis"},
        CHAT[3],
        {"role": "assistant", "content": "<think>Norway...</think>\nOslo"},
    ]
    [sample] = chat(write({"messages": messages}), with_template(QWEN3))
    assert learnt(sample) == [f"Paris{END}", f"<think>Norway...</think>\nOslo{END}"]
    assert "France..." not in whole(sample)


GREETING = [{"from": "gpt", "value": "assistant, how may I help?"}, {"from": "human", "value": "Capital of Norway?"}]
FIRST_ALONE = [{"role": "assistant", "content": " Hi"}]
REFUSES_ALONE = "{% if messages[0].role != 'user' %}{{ raise_exception('users first, please') }}{% endif %}" + MISTRAL
SAYS_WHO = (  # puts something before the first content, but not before later ones
    "{% for m in messages %}{{ m.role }}: {% if loop.first %}(begin) {% endif %}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, [f"assistant, how may I help?{END}", f"Oslo{END}"]),
        (MISTRAL, [f" assistant, how may I help?{END}", f" Oslo{END}"]),
        (QWEN3, [f"assistant, how may I help?{END}", f"Oslo{END}"]),
        (MARKED, [f"assistant, how may I help?{END}", f"Oslo{END}"]),
        (PLAIN_TURNS, [" assistant, how may I help?\n", " Oslo\n"]),
        (SAYS_WHO, ["Oslo\n"]),
    ],
)
def test_a_conversation_may_begin_with_the_assistant(template, expected, tokenizer, with_template, write, learnt):
    path = write({"conversations": [*GREETING, {"from": "gpt", "value": "Oslo"}]})
    [sample] = text_instruction(path, with_template(template) if template else tokenizer)
    assert learnt(sample) == expected


def test_a_first_turn_is_learnt_like_any_other(tokenizer, with_template, write, learnt):
    path = write({"messages": FIRST_ALONE})
    assert learnt(chat(path, tokenizer)[0]) == [f" Hi{END}"]
    with pytest.raises(InputError, match=r"train.jsonl:1: the only turn .* is the first message"):
        chat(path, with_template(SAYS_WHO))
    assert len(text_instruction(path, with_template(SAYS_WHO), answer_only_loss_mask=False)) == 1
    with pytest.raises(InputError, match="the chat template refuses the conversation: users first, please"):
        chat(path, with_template(REFUSES_ALONE))


TOOLS = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_ROW = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    "messages": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "No."},
    ],
}


def test_tools_are_given_to_the_template_and_calls_are_learnt(with_template, write, learnt, whole):
    [sample] = chat(write(TOOL_ROW), with_template(TOOLS))
    assert whole(sample).startswith('Tools: [{"type": "function"')
    assert learnt(sample) == [f'[{{"function": {{"name": "weather", "arguments": {{}}}}}}]{END}', f"No.{END}"]


def test_tools_that_the_template_would_drop_are_an_error(tokenizer, write):
    with pytest.raises(InputError, match=r"train.jsonl:1: `tools`, but the tokenizer's chat template has no place"):
        chat(write(TOOL_ROW), tokenizer)


def test_a_generation_prompt_that_no_turn_begins_with_is_an_error(with_template, write):
    with pytest.raises(InputError, match="generation prompt is not how it begins message 2"):
        chat(write({"messages": CHAT[1:3]}), with_template(THINKS_FIRST))


def test_what_the_template_refuses_is_an_error_in_its_words(with_template, write):
    with pytest.raises(InputError, match=r"train.jsonl:1: the chat template refuses .*: no system messages, please"):
        chat(write({"messages": CHAT}), with_template(NO_SYSTEM))


def test_a_chat_needs_a_template(with_template, write):
    with pytest.raises(InputError, match="no chat template"):
        chat(write({"messages": CHAT}), with_template(None))
