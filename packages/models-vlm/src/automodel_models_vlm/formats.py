"""What a row with images says, in each of the formats that are read: a conversation and its images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from automodel.suggest import did_you_mean
from automodel_huggingface.bad_rows import BadRowError, kind_name
from automodel_huggingface.conversations import Conversation, has_loss, parsed, read_messages

IMAGE = "<image>"
"""Where a text has an image, as in LLaVA's data."""
_IMAGE_KEYS = ("image", "path", "url", "image_url", "bytes")

Format = Callable[[Mapping[str, Any]], "ImageConversation"]


@dataclass(frozen=True)
class ImageConversation:
    """A conversation, and the images that its parts `{type: image}` stand for, in their order, not decoded yet."""

    conversation: Conversation
    images: list[Any]


@dataclass(frozen=True)
class Messages:
    """Conversations in the column `messages` (or `conversations`), with images inside or in columns of their own.

    A part may hold its image: `{type: image, image: ...}`, `path`, `url`, or OpenAI's `image_url`. Parts without one,
    and `<image>` in texts, take theirs from the columns `images` and `image` in turn; where nothing says their place,
    they stand before the first message of the user.

    Args:
        column: with the messages, or None for whichever of the two there is.
        image_column: with the images, or None.
        system_prompt: put before conversations without a system message.
    """

    column: str | None = None
    image_column: str | None = None
    system_prompt: str | None = None

    def __call__(self, columns: Mapping[str, Any]) -> ImageConversation:
        """Read a row.

        Raises:
            BadRowError: it is no conversation, or its images are not as many as their places.
        """
        column = self.column or next((name for name in ("messages", "conversations") if name in columns), "messages")
        if column not in columns:
            raise BadRowError(f"no column `{column}`{did_you_mean(column, columns)}")
        images: list[Any] = []
        messages = read_messages(column, columns[column], lambda which, content: _parts(which, content, images))
        if self.system_prompt is not None and messages[0]["role"] not in {"system", "developer"}:
            messages = [{"role": "system", "content": [_text(self.system_prompt)]}, *messages]
        if not any(has_loss(message) for message in messages):
            raise BadRowError("no turn of the assistant to learn from")
        if any(has_loss(message) and _has_image(message) for message in messages):
            raise BadRowError("an image in a turn of the assistant, who can only be taught to write")
        given = self._images(columns)
        num_places = sum(image is None for image in images)
        if given and not num_places:
            user = next((message for message in messages if message["role"] == "user"), None)
            if images or user is None:
                raise BadRowError(f"{len(given)} images in columns, and no place for them in the messages")
            user["content"] = [{"type": "image"} for _ in given] + user["content"]
            images = given
        elif len(given) != num_places:
            raise BadRowError(f"{len(given)} images for {num_places} places in the messages")
        else:
            remaining = iter(given)
            images = [next(remaining) if image is None else image for image in images]
        return ImageConversation(Conversation(messages, columns.get("tools") or None), images)

    def _images(self, columns: Mapping[str, Any]) -> list[Any]:
        names = [self.image_column] if self.image_column is not None else ["images", "image"]
        given: list[Any] = []
        for name in names:
            value = columns.get(name)
            given += value if isinstance(value, list) else [] if value is None else [value]
        return given


@dataclass(frozen=True)
class Pairs:
    """One image (or a list of them) and an answer a row, and a question in a column or the same for all.

    Args:
        image: the column with the image.
        answer: the column with the answer.
        question: the column with the question, or None.
        prompt: the question of rows that have none.
        system_prompt: put before each.
    """

    image: str
    answer: str
    question: str | None
    prompt: str
    system_prompt: str | None = None

    def __call__(self, columns: Mapping[str, Any]) -> ImageConversation:
        """Read a row.

        Raises:
            BadRowError: a column is missing, empty, or holds no text.
        """
        image = _column(columns, self.image)
        answer = _column(columns, self.answer)
        question = self.prompt if self.question is None else _column(columns, self.question)
        for name, value in ((self.answer, answer), (self.question or "prompt", question)):
            if not isinstance(value, str | int | float) or not str(value).strip():
                what = "empty" if isinstance(value, str) else f"{kind_name(value)}, not text"
                raise BadRowError(f"the column `{name}` is {what}")
        return _asked(image, str(question), str(answer), self.system_prompt)


@dataclass(frozen=True)
class Cord:
    """CORD-v2 (Park et al., 2019): an `image`, and its content as JSON in `ground_truth`.

    Args:
        target: `tokens` writes it as Donut does, `<s_total>...</s_total>`; `json` as JSON.
        prompt: what is asked of each image.
    """

    target: Literal["tokens", "json"]
    prompt: str

    def __call__(self, columns: Mapping[str, Any]) -> ImageConversation:
        """Read a row.

        Raises:
            BadRowError: it has no image, or no ground truth with `gt_parse` or `gt_parses`.
        """
        truth = _column(columns, "ground_truth")
        truth = parsed("ground_truth", truth) if isinstance(truth, str) else truth
        if not isinstance(truth, dict) or not (truth.get("gt_parse") or truth.get("gt_parses")):
            raise BadRowError("the column `ground_truth` has neither `gt_parse` nor `gt_parses`")
        if not truth.get("gt_parse") and not isinstance(truth["gt_parses"], list):
            raise BadRowError(
                f"`gt_parses` of the column `ground_truth` is {kind_name(truth['gt_parses'])}, not a list"
            )
        parse = truth["gt_parse"] if truth.get("gt_parse") else truth["gt_parses"][0]
        text = token_sequence(parse) if self.target == "tokens" else json.dumps(parse, ensure_ascii=False)
        return _asked(_column(columns, "image"), self.prompt, text, None)


def token_sequence(value: Any) -> str:
    """JSON as a sequence of tokens: `json2token` of Donut (arXiv:2111.15664), keys in falling order as there."""
    if isinstance(value, dict):
        if set(value) == {"text_sequence"}:
            return str(value["text_sequence"])
        return "".join(f"<s_{key}>{token_sequence(value[key])}</s_{key}>" for key in sorted(value, reverse=True))
    if isinstance(value, list):
        return "<sep/>".join(map(token_sequence, value))
    return str(value)


def _asked(image: Any, question: str, answer: str, system_prompt: str | None) -> ImageConversation:
    images = image if isinstance(image, list) else [image]
    places: list[None] = []
    asked = _split(question, places)
    if not places:
        asked = [*({"type": "image"} for _ in images), *asked]
    elif len(places) != len(images):
        raise BadRowError(f"{len(images)} images for {len(places)} places in the question")
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [_text(answer)]},
    ]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": [_text(system_prompt)]})
    return ImageConversation(Conversation(messages), images)


def _column(columns: Mapping[str, Any], name: str) -> Any:
    if name not in columns:
        raise BadRowError(f"no column `{name}`{did_you_mean(name, columns)}")
    if columns[name] is None:
        raise BadRowError(f"the column `{name}` is null")
    return columns[name]


def _parts(which: str, content: Any, images: list[Any]) -> list[dict[str, Any]]:
    """A message's content in parts; its images are added to `images`, None for those that lie elsewhere."""
    if isinstance(content, str):
        return _split(content, images)
    if not isinstance(content, list):
        raise BadRowError(f"the content of {which} is {kind_name(content)}, neither text nor a list of parts")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in {"text", "input_text", "output_text"} and isinstance(part.get("text"), str):
            parts += _split(part["text"], images)
        elif kind in {"image", "image_url", "input_image"}:
            image = next((part[key] for key in _IMAGE_KEYS if part.get(key) is not None), None)
            images.append(image["url"] if isinstance(image, dict) and "url" in image else image)
            parts.append({"type": "image"})
        else:
            raise BadRowError(f"the content of {which} holds a part that is neither text nor image: {str(part)[:80]}")
    return parts


def _has_image(message: dict[str, Any]) -> bool:
    return any(part["type"] == "image" for part in message.get("content") or ())


def _split(text: str, images: list[Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    pieces = text.split(IMAGE)
    for number, piece in enumerate(pieces):
        if number:
            images.append(None)
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n")  # LLaVA's data have one behind the image, and templates write their own
        if number + 1 < len(pieces):
            piece = piece.removesuffix("\n")
        if piece:
            parts.append(_text(piece))
    return parts or [_text("")]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
