"""From conversations with images to a micro-batch: the processor's tensors, and labels on what the assistant says."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from automodel import InputError
from automodel.interfaces import Batch
from automodel.training.collate import IGNORED_LABEL
from automodel_huggingface.bad_rows import BadRowError
from automodel_huggingface.chat import ChatTemplate, Span
from automodel_huggingface.conversations import Conversation
from numpy.typing import NDArray


def conversations(
    processor: Any,
    start_of_response_token: str | None = None,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> Conversations:
    """Conversations with images, for every family of models: the processor knows what its model wants.

    Loss is on what the assistant says, in all of its turns, up to and with the end of each.

    Args:
        processor: of the model.
        start_of_response_token: what stands before each answer, such as "<start_of_turn>model\\n"; null finds it from
            the chat template. Where it stands before no answer, that is an error.
        max_length: tokens that a row may have, images included; longer ones are an error, since an image cannot be cut.
            null is what the model can read.
        pad_to_multiple_of: round the length up to a multiple of this.

    Raises:
        InputError: the processor has no chat template, or a value is out of range.
    """
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length: {max_length} leaves nothing to learn from")
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise InputError(f"pad_to_multiple_of must be at least 1, not {pad_to_multiple_of}")
    if start_of_response_token == "":
        raise InputError("start_of_response_token is empty; leave it out to find it from the chat template")
    if not hasattr(processor, "image_processor"):
        raise InputError("the samples have images, and the model reads only text: use model: image-text-to-text")
    if not processor.tokenizer.is_fast:
        raise InputError("the tokenizer does not say which characters its tokens are (it is a slow one)")
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise InputError("the processor has no chat template, which conversations need")
    return Conversations(processor, start_of_response_token, max_length, pad_to_multiple_of)


class _Rendered(NamedTuple):
    """A conversation as text, with a placeholder for each image.

    Args:
        text: of the chat template.
        turns: the spans of characters that the assistant says.
        have_loss: which of them are learnt.
    """

    text: str
    turns: list[Span]
    have_loss: list[bool]


@dataclass(frozen=True)
class Conversations:
    """A collate function for samples of `conversation`, `images` and `place`."""

    processor: Any = field(repr=False)
    start_of_response_token: str | None
    max_length: int | None
    pad_to_multiple_of: int | None

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Rows padded on the right: the model's inputs, and `labels` (B, L).

        Raises:
            InputError: a row is too long, its template or processor refuses it, or its answers are not found.
        """
        rendered = [self._rendered(sample) for sample in samples]
        places = ", ".join(str(sample["place"]) for sample in samples)
        try:
            batch = self.processor(
                text=[row.text for row in rendered],
                images=[sample["images"] for sample in samples],
                add_special_tokens=False,  # a chat template writes them all
                padding=True,
                padding_side="right",
                pad_to_multiple_of=self.pad_to_multiple_of,
                return_tensors="pt",
            )
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(f"the processor refuses the images or texts of {places}: {error}") from error
        if "labels" in batch:
            raise InputError(f"{type(self.processor).__name__} makes labels of its own, which is not supported")
        ids_BL = batch["input_ids"].numpy()
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        labels_BL = np.full_like(ids_BL, IGNORED_LABEL)
        encoded = self.processor.tokenizer(
            [row.text for row in rendered], add_special_tokens=False, return_offsets_mapping=True
        )
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            if length > self._max_length:
                limit = "what the model reads" if self.max_length is None else "max_length"
                raise InputError(
                    f"{sample['place']} has {length} tokens with its images, more than {limit}: {self._max_length}; "
                    "raise it, let the model's `processor` make smaller images, or leave the row out"
                )
            tokens = np.asarray(encoded["input_ids"][row], dtype=ids_BL.dtype)
            turns = _tokens_within(rendered[row].turns, encoded["offset_mapping"][row])
            ids = ids_BL[row, :length]
            found = self._turns(tokens, turns, ids, sample["place"])
            for (first, last), has_loss in zip(found, reversed(rendered[row].have_loss), strict=True):
                if has_loss:
                    labels_BL[row, first:last] = ids[first:last]
        return {**batch, "labels": torch.from_numpy(labels_BL)}

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.processor.tokenizer, self.processor.chat_template)

    @cached_property
    def _max_length(self) -> int:
        return int(self.processor.tokenizer.model_max_length) if self.max_length is None else self.max_length

    def _rendered(self, sample: Mapping[str, Any]) -> _Rendered:
        conversation: Conversation = sample["conversation"]
        try:
            text, learnt = self._template.render(conversation)
            turns = learnt
            if any("weight" in message for message in conversation.messages):
                # all turns are looked for, so that one is not taken for another that says the same
                messages = [{k: v for k, v in message.items() if k != "weight"} for message in conversation.messages]
                _, turns = self._template.render(replace(conversation, messages=messages))
        except BadRowError as error:
            raise InputError(f"{sample['place']}: {error}") from error
        have_loss = [turn in learnt for turn in turns]
        if self.start_of_response_token is not None:
            turns = [self._after_marker(text, turn, sample["place"]) for turn in turns]
        return _Rendered(text, turns, have_loss)

    def _after_marker(self, text: str, span: Span, place: str) -> Span:
        marker = self.start_of_response_token
        assert marker is not None
        start, end = span
        if text.endswith(marker, 0, start):
            return span
        found = text.find(marker, max(0, start - len(marker)), end)  # where it ends within the turn
        if found < 0:
            raise InputError(
                f"start_of_response_token: {marker!r} does not stand before an answer of {place}. The text is\n"
                f"  {text!r}\nof which this is the answer:\n  {text[start:end]!r}\n"
                "Leave start_of_response_token out to find answers by the chat template"
            )
        return found + len(marker), end

    def _turns(
        self, tokens: NDArray[np.int64], turns: Sequence[Span], ids: NDArray[np.int64], place: str
    ) -> Iterator[Span]:
        """Where those spans of `tokens`, which has one placeholder for each image, stand in `ids`; the last one first.

        The processor writes many tokens for each image, so they stand elsewhere there; but between images both have
        the same tokens. From the end on, each turn is found where most of what stands before it agrees: the user may
        have said the same.
        """
        end_of_row = len(ids)
        for first, last in reversed(turns):
            position = _find(ids[:end_of_row], tokens, first, last)
            if position is None:
                raise InputError(
                    f"a turn of the assistant of {place} is not found among its tokens: "
                    f"{self.processor.decode(tokens[first:last])!r} in\n  {self.processor.decode(ids)!r}"
                )
            yield position, position + last - first
            end_of_row = position


def _tokens_within(spans: Sequence[Span], offsets: Sequence[Span]) -> list[Span]:
    """The tokens of spans of characters, given each token's own."""
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    return [(bisect_right(ends, start), bisect_left(starts, end)) for start, end in spans]


def _find(ids: NDArray[np.int64], tokens: NDArray[np.int64], first: int, last: int) -> int | None:
    """Where `tokens[first:last]` stands in `ids`: behind most tokens that stand before it in `tokens`, then last."""
    wanted = tokens[first:last]
    if len(ids) < len(wanted):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(wanted))
    places = np.flatnonzero((windows == wanted).all(axis=1))
    return max(places.tolist(), key=lambda place: (_num_equal(ids[:place], tokens[:first]), place), default=None)


def _num_equal(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """How many tokens at the ends are equal."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[len(one) - size :] != other[len(other) - size :])
    return size if not len(differ) else size - 1 - int(differ[-1])
