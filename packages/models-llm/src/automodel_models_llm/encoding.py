"""From rows to tokens and the mask of those that carry loss."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from automodel import InputError
from automodel_huggingface.bad_rows import BadRowError, RowReport
from automodel_huggingface.chat import ChatTemplate, Span
from automodel_huggingface.conversations import Conversation
from automodel_huggingface.sources import Row

from automodel_models_llm.row_formats import Completion, RowFormats, Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_LOSS = -100


class Encoded(NamedTuple):
    """One sample: N tokens (int32) and whether each carries loss (bool)."""

    tokens: NDArray[np.int32]
    loss: NDArray[np.bool_]

    def sample(self) -> dict[str, NDArray[np.int32]]:
        """The sample as collate functions take it: `input_ids`, and `labels` that are the same or -100."""
        labels_N = np.where(self.loss, self.tokens, np.int32(NO_LOSS))
        return {"input_ids": self.tokens, "labels": labels_N}


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Args:
        text: the whole text.
        spans: the characters that carry loss.
        bounded: the beginning-of-text token of the tokenizer comes first, and the end-of-text token last, with loss.
            Chat templates write their own.
    """

    text: str
    spans: list[Span]
    bounded: bool


class Encoder:
    """Encodes rows.

    Args:
        tokenizer: a transformers tokenizer with a `tokenizers` backend.
        formats: reads the columns.
        max_length: tokens a row may have; None for any number.
        truncation: what becomes of longer rows: `error`, `skip`, cut on the `right` or `left`, or `split`.
        answer_only: only answers carry loss; otherwise every token does.

    Raises:
        InputError: the tokenizer has no such backend, or lacks the token or template that is needed.
    """

    def __init__(
        self, tokenizer: Any, formats: RowFormats, max_length: int | None, truncation: str, answer_only: bool
    ) -> None:
        # tokenizers written in Python have no such attribute
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise InputError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json, which data sets need")
        self.formats, self.max_length, self.truncation, self.answer_only = formats, max_length, truncation, answer_only
        # a copy without the step that adds special tokens: in byte-level tokenizers it also moves offsets past spaces
        backend_json = tokenizer.backend_tokenizer.to_str()
        self._backend_digest = hashlib.sha256(backend_json.encode()).hexdigest()
        self._backend = type(tokenizer.backend_tokenizer).from_str(backend_json)
        self._backend.post_processor = None
        self._backend.no_truncation()
        self._backend.no_padding()
        self._chat = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        self._template = tokenizer.chat_template
        self._bos_ids = _bos_ids(tokenizer)
        self._eos_id: int | None = tokenizer.eos_token_id

    def digest(self) -> str:
        """Changes when the same rows would be encoded differently."""
        settings = (self.formats, self.max_length, self.truncation, self.answer_only, self._bos_ids, self._eos_id)
        text = "\0".join((self._backend_digest, repr(self._template), repr(settings)))
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, rows: Sequence[Row], report: RowReport) -> list[list[Encoded]]:
        """The samples of each row: one, none for a row that is left out, several for one that is split.

        What is wrong with a row goes into the report.
        """
        samples: list[list[Encoded]] = [[] for _ in rows]
        rendered = {}
        for index, row in enumerate(rows):
            try:
                rendered[index] = self._render(row)
            except BadRowError as error:
                report.bad(row.place, str(error))
        encodings = self._backend.encode_batch([item.text for item in rendered.values()], add_special_tokens=False)
        for (index, item), encoding in zip(rendered.items(), encodings, strict=True):
            try:
                samples[index] = self._fit(self._label(item, encoding), rows[index], report)
            except BadRowError as error:
                report.bad(rows[index].place, str(error))
        return samples

    def _render(self, row: Row) -> Rendered:
        content = self.formats.read(row.columns())
        match content:
            case Text(text):
                return Rendered(text, [(0, len(text))], bounded=True)
            case Completion(prompt, completion):
                text = prompt + completion
                spans, bounded = [(len(prompt), len(text))], True
            case Conversation():
                if self._chat is None:
                    raise BadRowError("a conversation, but the tokenizer has no chat template")
                text, spans = self._chat.render(content)
                if self.answer_only and not spans:
                    raise BadRowError(
                        "the only turn of the assistant to learn from is the first message, and where that begins "
                        "cannot be found in what the chat template makes of it"
                    )
                bounded = False
        return Rendered(text, spans if self.answer_only else [(0, len(text))], bounded)

    def _label(self, item: Rendered, encoding: Any) -> Encoded:
        num_chars = len(item.text)
        starts = [_token_at(encoding, start, num_chars) for start, _ in item.spans]
        if not all(begins for _, begins in starts):
            return self._bounded(item, *self._piecewise(item, encoding))
        tokens_N = np.array(encoding.ids, dtype=np.int32)
        loss_N = np.zeros(len(tokens_N), dtype=np.bool_)
        for (first, _), (_, end) in zip(starts, item.spans, strict=True):
            last, begins = _token_at(encoding, end, num_chars)
            loss_N[first : last if begins else last + 1] = True
        return self._bounded(item, tokens_N, loss_N)

    def _piecewise(self, item: Rendered, encoding: Any) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Encode a text in which a token reaches from the prompt into the answer (`A:` + ` Paris` for `A: ` + `Paris`).

        At inference the prompt is encoded alone, and a model that has learnt the joint token could not go on from
        there. So prompt and answer are encoded apart.
        """
        bounds = [0, *(bound for span in item.spans for bound in span), len(item.text)]
        pieces = [item.text[start:end] for start, end in itertools.pairwise(bounds)]
        ids = [self._backend.encode(piece, add_special_tokens=False).ids for piece in pieces]
        joined = [token for piece in ids for token in piece]
        if self._decode(joined) != self._decode(encoding.ids):  # a tokenizer that puts a space before every text
            raise BadRowError("a token reaches from the prompt into the answer; end the prompt without a space")
        loss_N = np.concatenate([np.full(len(piece), number % 2 == 1) for number, piece in enumerate(ids)])
        return np.array(joined, dtype=np.int32), loss_N

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def _bounded(self, item: Rendered, tokens_N: NDArray[np.int32], loss_N: NDArray[np.bool_]) -> Encoded:
        if item.bounded:
            if self._eos_id is None:
                raise InputError("the tokenizer has no end-of-text token, with which rows without a chat template end")
            num_bos = len(self._bos_ids)
            tokens_N = np.concatenate([self._bos_ids, tokens_N, [self._eos_id]]).astype(np.int32)
            loss_N = np.concatenate([np.full(num_bos, not self.answer_only), loss_N, [True]])
        if not loss_N[1:].any():
            raise BadRowError("no token of it carries loss")
        return Encoded(tokens_N, loss_N)

    def _fit(self, encoded: Encoded, row: Row, report: RowReport) -> list[Encoded]:
        num_tokens, limit = len(encoded.tokens), self.max_length
        if limit is None or num_tokens <= limit:
            return [encoded]
        report.long(row.place, num_tokens)
        match self.truncation:
            case "right":
                parts = [slice(0, limit)]
            case "left":
                parts = [slice(num_tokens - limit, num_tokens)]
            case "split":
                parts = [slice(start, start + limit) for start in range(0, num_tokens - 1, limit)]
            case _:
                return []
        cut = [Encoded(encoded.tokens[part], encoded.loss[part]) for part in parts]
        kept = [sample for sample in cut if sample.loss[1:].any()]
        if not kept:
            raise BadRowError(
                f"{num_tokens} tokens, and none of the {limit} that truncation: {self.truncation} keeps carries loss"
            )
        return kept


def _token_at(encoding: Any, char: int, num_chars: int) -> tuple[int, bool]:
    """The token of a character, or of the next one that has one; and whether the token begins there, not before."""
    for place in range(char, num_chars):
        token = encoding.char_to_token(place)
        if token is not None:  # None: the tokenizer drops this character
            return token, encoding.token_to_chars(token)[0] >= char
    return len(encoding.ids), True


def _bos_ids(tokenizer: Any) -> list[int]:
    """The token that the tokenizer puts before a text, if it does."""
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    return [int(ids[0])] if len(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []
