"""The formats of rows, told apart by their columns, and what each says: a conversation, a completion or a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from automodel import InputError
from automodel.suggest import did_you_mean
from automodel_huggingface.bad_rows import BadRowError, kind_name
from automodel_huggingface.conversations import Conversation, Message, has_loss, parsed, read_messages


@dataclass(frozen=True)
class Completion:
    """A prompt and what follows it. Only the latter carries loss."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """A text that carries loss everywhere."""

    text: str


class PromptFormat(NamedTuple):
    """A format of one question and one answer.

    Args:
        prompt: the column with the question.
        answers: columns that may hold the answer.
        contexts: optional columns that add to the question; those in front of it come first.
        context_first: whether the context stands before the question.
        separator: what stands between question and answer where there is no chat template.
    """

    prompt: str
    answers: tuple[str, ...]
    contexts: tuple[str, ...]
    context_first: bool
    separator: str


PROMPT_FORMATS = (
    PromptFormat("instruction", ("output", "response"), ("input", "context"), False, "\n"),
    PromptFormat("question", ("answer",), ("context",), True, "\n"),
    PromptFormat("prompt", ("completion", "response"), (), False, ""),
)
KNOWN = "messages (+ tools), instruction (+ input) + output, prompt + completion, question (+ context) + answer, text"
_CHAT_COLUMNS = ("messages", "conversations")
_OPTIONAL = {"input", "context", "tools"}
COLUMNS = sorted(
    {*_CHAT_COLUMNS, "tools", "text"}
    | {column for form in PROMPT_FORMATS for column in (form.prompt, *form.answers, *form.contexts)}
)


@dataclass(frozen=True)
class RowFormats:
    """Makes of a row's columns what it says.

    Args:
        column_mapping: column of a known format -> column of the data; only those named are looked at.
        use_chat_template: questions and answers become conversations, not completions.
        system_prompt: put before conversations that have no system message.
    """

    column_mapping: Mapping[str, str] | None
    use_chat_template: bool
    system_prompt: str | None

    def __post_init__(self) -> None:
        for column in self.column_mapping or {}:
            if column not in COLUMNS:
                raise InputError(
                    f"column_mapping: {column!r} is no column of a known format{did_you_mean(column, COLUMNS)}"
                )

    def read(self, columns: Mapping[str, Any]) -> Conversation | Completion | Text:
        """What a row says.

        Raises:
            BadRowError: its columns fit no format, or hold something of a wrong type, empty, or unknown.
        """
        if self.column_mapping is not None:
            columns = self._mapped(columns)
        given = {column: value for column, value in columns.items() if value is not None}
        for column in _CHAT_COLUMNS:
            if column in given:
                return self._conversation(read_messages(column, given[column], _text_content), given.get("tools"))
        for form in PROMPT_FORMATS:
            if form.prompt in given and (answer := next((column for column in form.answers if column in given), None)):
                return self._question(form, answer, given)
        if "text" in given:
            return Text(_text("text", given["text"]))
        raise BadRowError(_missing(columns, given))

    def _mapped(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        assert self.column_mapping is not None
        mapped = {}
        for known, column in self.column_mapping.items():
            if column in columns:
                mapped[known] = columns[column]
            elif known not in _OPTIONAL:
                near = did_you_mean(column, columns)
                raise BadRowError(f"no column `{column}` (column_mapping: {known}){near}")
        return mapped

    def _question(self, form: PromptFormat, answer: str, given: Mapping[str, Any]) -> Conversation | Completion:
        if isinstance(given[form.prompt], list):  # both are messages
            context, completion = (
                read_messages(column, given[column], _text_content) for column in (form.prompt, answer)
            )
            return self._conversation([*context, *completion], given.get("tools"), num_context=len(context))
        parts = [_text(form.prompt, given[form.prompt])]
        for column in form.contexts:
            if given.get(column, "") != "":
                parts.append(_text(column, given[column]))
        prompt = "\n\n".join(reversed(parts) if form.context_first else parts)
        completion_text = _text(answer, given[answer])
        if not self.use_chat_template:
            return Completion(prompt + form.separator, completion_text)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion_text}]
        return self._conversation(messages, given.get("tools"))

    def _conversation(self, messages: list[Message], tools: Any, num_context: int = 0) -> Conversation:
        if self.system_prompt is not None and messages[0]["role"] not in {"system", "developer"}:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
            num_context += 1
        if isinstance(tools, str):
            tools = parsed("tools", tools)
        if tools is not None and not isinstance(tools, list):
            raise BadRowError(f"the column `tools` is {kind_name(tools)}, not a list of tools")
        if not any(has_loss(message) for message in messages[num_context:]):
            raise BadRowError("no turn of the assistant to learn from")
        return Conversation(messages, tools or None, num_context)


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"the column `{column}` is {kind_name(value)}, not text")
    if not value.strip():
        raise BadRowError(f"the column `{column}` is empty")
    return value


def _text_content(which: str, content: Any) -> str:
    """The text of content, which may be in parts, `[{"type": "text", "text": ...}, ...]`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRowError(f"the content of {which} is {kind_name(content)}, not text")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else kind_name(part)
            raise BadRowError(f"the content of {which} holds a part of type {kind}; a text model reads only text")
    return "".join(part["text"] for part in content)


def _missing(columns: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    there = ", ".join(columns) or "none"
    for form in PROMPT_FORMATS:
        if form.prompt not in given:
            continue
        if empty := [column for column in form.answers if column in columns]:
            return f"the column `{empty[0]}` is null"
        near = did_you_mean(form.answers[0], columns)
        hint = near if "did you mean" in near else ""
        return f"a column `{form.prompt}` but no `{form.answers[0]}`{hint} (columns: {there})"
    near = next((did_you_mean(column, COLUMNS) for column in columns if "mean" in did_you_mean(column, COLUMNS)), "")
    return f"its columns ({there}) fit no known format{near}; known: {KNOWN}; name yours with column_mapping"
