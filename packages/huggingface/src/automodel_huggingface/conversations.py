"""Conversations: messages as rows hold them, checked, for the chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from automodel.suggest import did_you_mean

from automodel_huggingface.bad_rows import BadRowError, kind_name

Message: TypeAlias = dict[str, Any]
"""`role`, `content` (a text, or a list of parts `{type: text, text: ...}` and `{type: image}`) and what else the chat
template knows: `tool_calls`, ...; `weight: 0` takes a turn's loss away."""
ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


@dataclass(frozen=True)
class Conversation:
    """Messages for the chat template. The assistant's turns from index `num_context` on carry loss, unless they say
    `weight: 0`.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    num_context: int = 0


def has_loss(message: Message) -> bool:
    """Whether a message is a turn of the assistant that is learnt from."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def content_text(message: Message) -> str:
    """The text of a message, without its images."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def parsed(column: str, value: str) -> Any:
    """The JSON value of a column.

    Raises:
        BadRowError: it is no JSON.
    """
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise BadRowError(f"the column `{column}` is text, but no JSON: {error.msg} at column {error.colno}") from error


def read_messages(column: str, value: Any, read_content: Callable[[str, Any], Any]) -> list[Message]:
    """Check a column of messages, with `role` and `content` or ShareGPT's `from` and `value`; JSON text too.

    Args:
        column: its name.
        value: what the row has there.
        read_content: checks the content of a message (called with a name for that message), and returns what the chat
            template is given.

    Raises:
        BadRowError: they are no messages.
    """
    if isinstance(value, str):  # as CSV files have it
        value = parsed(column, value)
    if not isinstance(value, list):
        raise BadRowError(f"the column `{column}` is {kind_name(value)}, not a list of messages")
    if not value:
        raise BadRowError(f"the column `{column}` is an empty list")
    return [
        _message(f"message {number} of `{column}`", message, read_content)
        for number, message in enumerate(value, start=1)
    ]


def _message(which: str, value: Any, read_content: Callable[[str, Any], Any]) -> Message:
    if not isinstance(value, dict):
        raise BadRowError(f"{which} is {kind_name(value)}, not an object with role and content")
    message = {key: item for key, item in value.items() if item is not None}
    if "from" in message and "value" in message:
        speaker = message.pop("from")
        message |= {"role": _SHAREGPT_ROLES.get(speaker, speaker), "content": message.pop("value")}
    role = message.get("role")
    if role is None:
        raise BadRowError(f"{which} has no `role`; it has {', '.join(message) or 'nothing'}")
    if role not in ROLES:
        raise BadRowError(f"{which} has the unknown role {role!r}{did_you_mean(str(role), ROLES)}")
    content = message.get("content")
    if content is not None:
        message["content"] = read_content(f"{which} ({role})", content)
    elif not (role == "assistant" and message.get("tool_calls")):
        raise BadRowError(f"{which} ({role}) has no `content`")
    if role == "assistant" and not content_text(message).strip() and not message.get("tool_calls"):
        raise BadRowError(f"{which} (assistant) is empty")
    return message
