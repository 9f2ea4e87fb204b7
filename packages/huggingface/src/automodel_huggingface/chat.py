"""Chat templates: the text of a conversation, and which of its characters the assistant says."""

from __future__ import annotations

import re
from typing import Any

from automodel_huggingface.bad_rows import BadRowError
from automodel_huggingface.conversations import Conversation, Message, content_text, has_loss

Span = tuple[int, int]
_OTHER = "7b1e5f"  # a content that no template changes
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """The chat template of a tokenizer, or of a processor for the tokenizer it has.

    A turn of the assistant is what the model has to say once it is asked to go on: everything after the generation
    prompt, up to and with the end-of-turn token. A template with `{% generation %}` markers says so itself. For the
    others the turn is found by rendering the conversation up to it and with it. A conversation that begins with the
    assistant has nothing that could be rendered up to there: its first turn is found by its content.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._special = tuple(sorted(tokenizer.all_special_tokens, key=len, reverse=True))
        self._special += tuple(str(token) for token in tokenizer.added_tokens_decoder.values())

    def render(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """The text, and the character spans that carry loss.

        Raises:
            BadRowError: the template refuses the conversation, or a turn cannot be found in its text.
        """
        template = self._tokenizer.get_chat_template(self._template, conversation.tools)
        calls = any(message.get("tool_calls") for message in conversation.messages)
        for word, present in (("tools", conversation.tools), ("tool_calls", calls)):
            if present and word not in template:
                raise BadRowError(f"`{word}`, but the tokenizer's chat template has no place for them")
        if _GENERATION.search(template):
            return self._render_marked(conversation, template)
        text = self._text(conversation, len(conversation.messages))
        spans = []
        for index, message in enumerate(conversation.messages):
            if index >= conversation.num_context and has_loss(message):
                start = self._start(conversation, index, text)
                if start is not None:
                    spans.append((start, self._end(conversation, index, text, start)))
        return text, spans

    def _start(self, conversation: Conversation, index: int, text: str) -> int | None:
        if index == 0:
            return self._start_of_first(conversation, text)
        before = self._text(conversation, index, ask=True)
        if not text.startswith(before):
            raise BadRowError(
                f"the chat template's generation prompt is not how it begins message {index + 1}, a turn of the "
                "assistant; give the tokenizer a template with {% generation %} markers"
            )
        return len(before)

    def _start_of_first(self, conversation: Conversation, text: str) -> int | None:
        """The start of a turn before which there is none, or None if it cannot be found.

        Its content stands where the template puts any other content. What the model says begins with the generation
        prompt's end, as in later turns: white space between that and the content belongs to the turn.
        """
        content = content_text(conversation.messages[0]).strip()
        in_parts = isinstance(conversation.messages[0].get("content"), list)
        probe = [{"type": "text", "text": _OTHER}] if in_parts else _OTHER
        other, question = (
            Conversation([{"role": role, "content": probe}], conversation.tools) for role in ("assistant", "user")
        )
        try:
            closed = self._text(other, 1)
            prompt = self._text(question, 1, ask=True).removeprefix(self._text(question, 1))
        except BadRowError:
            return None
        heading = closed.partition(_OTHER)[0].rstrip()
        said = text[len(heading) :].lstrip()
        if not content or _OTHER not in closed or not text.startswith(heading) or not said.startswith(content):
            return None
        if not heading.endswith(prompt.rstrip()):
            return None
        spaces = text[len(heading) : len(text) - len(said)]
        skipped = prompt[len(prompt.rstrip()) :]
        return len(heading) + len(skipped) if spaces.startswith(skipped) else None

    def _end(self, conversation: Conversation, index: int, text: str, start: int) -> int:
        last = index + 1 == len(conversation.messages)
        through = text if last else self._text(conversation, index + 1)
        if len(through) > start and text.startswith(through):
            return self._without_newline(text, start, len(through))
        return self._end_by_token(conversation.messages[index], text, start, through)

    def _end_by_token(self, message: Message, text: str, start: int, through: str) -> int:
        """The end of a turn that the template writes differently once more turns follow (it drops the reasoning)."""
        closing = next((token for token in self._special if through.rstrip().endswith(token)), None)
        end = text.find(closing, start) if closing is not None else -1
        said = text[start:end].strip()
        content = content_text(message)
        if closing is None or end < 0 or not said or said not in content or message.get("tool_calls"):
            raise BadRowError(
                "the chat template writes a turn of the assistant differently once more turns follow, so it cannot be "
                "found; split the conversation, or give the tokenizer a template with {% generation %} markers"
            )
        return end + len(closing)

    def _without_newline(self, text: str, start: int, end: int) -> int:
        """Leave out white space after an end-of-turn token: the model has stopped by then."""
        trimmed = text[start:end].rstrip()
        return start + len(trimmed) if trimmed.endswith(self._special) else end

    def _text(self, conversation: Conversation, num_messages: int, ask: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                [_visible(message) for message in conversation.messages[:num_messages]],
                tools=conversation.tools,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=ask,
            )
        except _template_errors() as error:
            raise BadRowError(f"the chat template refuses the conversation: {error}") from error

    def _render_marked(self, conversation: Conversation, template: str) -> tuple[str, list[Span]]:
        # transformers 5.23: what apply_chat_template itself calls; only this gives characters instead of tokens
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marked = render_jinja_template(
                conversations=[[_visible(message) for message in conversation.messages]],
                tools=conversation.tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        except _template_errors() as error:
            raise BadRowError(f"the chat template refuses the conversation: {error}") from error
        spans: list[Span] = marked[0]
        turns = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        wanted = [i for i in turns if i >= conversation.num_context and has_loss(conversation.messages[i])]
        if wanted == turns:
            return texts[0], spans
        if len(spans) != len(turns):
            raise BadRowError("some of the assistant's turns carry no loss, but the template marks them together")
        return texts[0], [span for index, span in zip(turns, spans, strict=True) if index in wanted]


def _visible(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "weight"}


def _template_errors() -> tuple[type[Exception], ...]:
    from jinja2 import TemplateError

    return (TemplateError, TypeError, KeyError, ValueError)
