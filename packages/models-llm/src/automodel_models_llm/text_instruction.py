"""The data set providers: thin signatures over one way of reading and encoding rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from automodel import InputError
from automodel.notices import notice
from automodel_huggingface.bad_rows import RowReport
from automodel_huggingface.files import digest_of_files, find_files
from automodel_huggingface.sources import Row, hub_rows, load_hub, read_rows

from automodel_models_llm.encoded import EncodedDataset, encode_all
from automodel_models_llm.encoding import Encoder
from automodel_models_llm.row_formats import RowFormats

if TYPE_CHECKING:
    from automodel_models_llm.streaming import StreamingDataset

_UNSET_LENGTH = 1_000_000_000  # transformers writes 1e30 for «not known»


def text_instruction(
    data_path: str | list[str],
    processor: Any,
    max_length: int | None = None,
    truncation: Literal["error", "right", "left", "skip"] = "error",
    column_mapping: dict[str, str] | None = None,
    split: str | None = None,
    name: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    use_chat_template: bool | None = None,
    system_prompt: str | None = None,
    answer_only_loss_mask: bool = True,
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 0,
    seed: int = 0,
) -> EncodedDataset | StreamingDataset:
    """Instructions and answers, prompts and completions, questions and answers, chats, or texts, told apart by columns.

    Args:
        data_path: a JSONL, JSON, CSV, TSV or Parquet file (.gz too), a glob, a directory, a list of those, or the
            name of a Hub data set (needs the extra `hub`).
        processor: the tokenizer.
        max_length: tokens a row may have; null is what the model can read.
        truncation: what becomes of longer rows: an error, cut on the right or left, or left out.
        column_mapping: column of a known format -> column of the data, such as `{instruction: task, output: reply}`.
        split: `train`, `validation`, ...: which files of a directory, or which split of a Hub data set.
        name: configuration of a Hub data set.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.
        use_chat_template: whether questions and answers go through the chat template; null where there is one.
        system_prompt: put before conversations that have no system message.
        answer_only_loss_mask: loss on answers only, or on every token.
        limit_dataset_samples: read only the first rows.
        streaming: encode rows as they are needed, for data that is too large to be encoded before training.
        shuffle_buffer: with streaming, the rows among which the next one is drawn; 0 keeps their order.
        seed: of the shuffling.

    Raises:
        InputError: no such data, or rows that cannot be used; names file and line.
    """
    formats = RowFormats(column_mapping, _uses_template(processor, use_chat_template), system_prompt)
    if system_prompt is not None and not formats.use_chat_template:
        raise InputError("system_prompt needs a chat template, and none is used here")
    encoder = Encoder(processor, formats, _limit(processor, max_length), truncation, answer_only_loss_mask)
    source = _Source(data_path, split, name, streaming)
    return _dataset(source, encoder, on_bad_row, limit_dataset_samples, streaming, shuffle_buffer, seed)


def chat(
    data_path: str | list[str],
    processor: Any,
    max_length: int | None = None,
    truncation: Literal["error", "right", "left", "skip"] = "error",
    column: str = "messages",
    split: str | None = None,
    name: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    system_prompt: str | None = None,
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 0,
    seed: int = 0,
) -> EncodedDataset | StreamingDataset:
    """Conversations, rendered by the tokenizer's chat template; loss on every turn of the assistant.

    Args:
        data_path: as in text-instruction.
        processor: the tokenizer; it needs a chat template.
        max_length: tokens a row may have; null is what the model can read.
        truncation: what becomes of longer rows: an error, cut on the right or left, or left out.
        column: the column with the messages. A column `tools` is passed to the template.
        split: which files of a directory, or which split of a Hub data set.
        name: configuration of a Hub data set.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.
        system_prompt: put before conversations that have no system message.
        limit_dataset_samples: read only the first rows.
        streaming: encode rows as they are needed.
        shuffle_buffer: with streaming, the rows among which the next one is drawn; 0 keeps their order.
        seed: of the shuffling.

    Raises:
        InputError: no such data, no chat template, or rows that cannot be used; names file and line.
    """
    formats = RowFormats({"messages": column, "tools": "tools"}, _uses_template(processor, True), system_prompt)
    encoder = Encoder(processor, formats, _limit(processor, max_length), truncation, answer_only=True)
    source = _Source(data_path, split, name, streaming)
    return _dataset(source, encoder, on_bad_row, limit_dataset_samples, streaming, shuffle_buffer, seed)


def column_mapped(
    path_or_dataset_id: str | list[str],
    column_mapping: dict[str, str],
    processor: Any,
    tokenizer: Any = None,
    split: str | None = None,
    name: str | None = None,
    answer_only_loss_mask: bool = True,
    seq_length: int | None = None,
    truncation: Literal["error", "right", "left", "skip"] = "error",
    start_of_turn_token: str | None = None,
    use_hf_chat_template: bool | None = None,
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
) -> EncodedDataset | StreamingDataset:
    """Questions and answers in columns of any names: NeMo's ColumnMappedTextInstructionDataset.

    Args:
        path_or_dataset_id: as data_path in text-instruction.
        column_mapping: `context` (optional), `question` and `answer` -> column of the data.
        processor: the model's tokenizer.
        tokenizer: another tokenizer to use instead.
        split: which files of a directory, or which split of a Hub data set.
        name: configuration of a Hub data set.
        answer_only_loss_mask: loss on answers only, or on every token.
        seq_length: tokens a row may have; null is what the model can read.
        truncation: what becomes of longer rows: an error, cut on the right or left, or left out.
        start_of_turn_token: accepted for NeMo's recipes, with a note: the answer is found without it.
        use_hf_chat_template: whether rows go through the chat template; null where there is one.
        limit_dataset_samples: read only the first rows.
        streaming: encode rows as they are needed.

    Raises:
        InputError: no such data, or rows that cannot be used; names file and line.
    """
    if start_of_turn_token is not None:
        notice(f"start_of_turn_token: {start_of_turn_token} has no effect here: the answer is found without it")
    return text_instruction(
        path_or_dataset_id,
        processor if tokenizer is None else tokenizer,
        max_length=seq_length,
        truncation=truncation,
        column_mapping=column_mapping,
        split=split,
        name=name,
        use_chat_template=use_hf_chat_template,
        answer_only_loss_mask=answer_only_loss_mask,
        limit_dataset_samples=limit_dataset_samples,
        streaming=streaming,
    )


def plain_text(
    data_path: str | list[str],
    processor: Any,
    max_length: int | None = None,
    truncation: Literal["split", "error", "right", "left", "skip"] = "split",
    column: str = "text",
    split: str | None = None,
    name: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    limit_dataset_samples: int | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 0,
    seed: int = 0,
) -> EncodedDataset | StreamingDataset:
    """Running text, for continued pre-training: loss on every token, an end-of-text token after each text.

    Args:
        data_path: as in text-instruction.
        processor: the tokenizer.
        max_length: tokens of a sample; null is what the model can read.
        truncation: what becomes of longer texts: split into samples, an error, cut on the right or left, or left out.
        column: the column with the text.
        split: which files of a directory, or which split of a Hub data set.
        name: configuration of a Hub data set.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.
        limit_dataset_samples: read only the first rows.
        streaming: encode rows as they are needed.
        shuffle_buffer: with streaming, the rows among which the next one is drawn; 0 keeps their order.
        seed: of the shuffling.

    Raises:
        InputError: no such data, or rows that cannot be used; names file and line.
    """
    formats = RowFormats({"text": column}, use_chat_template=False, system_prompt=None)
    encoder = Encoder(processor, formats, _limit(processor, max_length), truncation, answer_only=True)
    source = _Source(data_path, split, name, streaming)
    return _dataset(source, encoder, on_bad_row, limit_dataset_samples, streaming, shuffle_buffer, seed)


class _Source:
    """Where rows come from, found once and read as often as asked; it goes to worker processes."""

    def __init__(self, data_path: str | list[str], split: str | None, name: str | None, streaming: bool) -> None:
        found = find_files(data_path, split)
        self._files: list[Path] = [] if isinstance(found, str) else found
        self._hub_name = found if isinstance(found, str) else ""
        self._hub_data: Any = load_hub(found, name, split, streaming) if isinstance(found, str) else None
        if self._files and name is not None:
            notice(f"name: {name} says nothing here: only Hub data sets have configurations")
        if (
            self._files
            and split is not None
            and not any(Path(part).expanduser().is_dir() for part in _listed(data_path))
        ):
            notice(f"split: {split} says nothing here: data_path names files, which are taken whole")

    def __call__(self) -> Iterable[Row]:
        return read_rows(self._files) if self._files else hub_rows(self._hub_name, self._hub_data)

    def digest(self) -> str:
        """Changes when the rows do."""
        # `datasets` names the content of a data set by its fingerprint; there is no public accessor (5.2)
        return digest_of_files(self._files) if self._files else f"hub {self._hub_name} {self._hub_data._fingerprint}"


@dataclass(frozen=True)
class _NewReport:
    on_bad_row: Literal["error", "skip"]
    truncation: str
    max_length: int | None

    def __call__(self) -> RowReport:
        return RowReport(self.on_bad_row, self.truncation, self.max_length)


def _dataset(
    source: _Source,
    encoder: Encoder,
    on_bad_row: Literal["error", "skip"],
    limit: int | None,
    streaming: bool,
    shuffle_buffer: int,
    seed: int,
) -> EncodedDataset | StreamingDataset:
    if limit is not None and limit < 1:
        raise InputError(f"limit_dataset_samples: {limit} leaves no rows")
    report = _NewReport(on_bad_row, encoder.truncation, encoder.max_length)
    if streaming:
        from automodel_models_llm.streaming import StreamingDataset  # imports torch

        return StreamingDataset(source, encoder, report, limit, shuffle_buffer, seed)
    if shuffle_buffer:
        raise InputError("shuffle_buffer is for streaming: true; without it the data loader shuffles all rows")
    return encode_all(source, source.digest(), encoder, limit, report())


def _listed(data_path: str | list[str]) -> list[str]:
    return [data_path] if isinstance(data_path, str) else data_path


def _uses_template(tokenizer: Any, wanted: bool | None) -> bool:
    _require_tokenizer(tokenizer)
    there = bool(tokenizer.chat_template)
    if wanted and not there:
        raise InputError("the tokenizer has no chat template, which this data set needs (use_chat_template: false)")
    return there if wanted is None else wanted


def _require_tokenizer(processor: Any) -> None:
    if hasattr(processor, "image_processor"):
        raise InputError(
            "this data set is for models of text, and the model reads images: use image-chat, image-text-pairs or "
            "another data set of automodel-models-vlm"
        )


def _limit(tokenizer: Any, max_length: int | None) -> int | None:
    _require_tokenizer(tokenizer)
    readable = int(tokenizer.model_max_length) if tokenizer.model_max_length < _UNSET_LENGTH else None
    if max_length is None:
        return readable
    if max_length < 2:
        raise InputError(f"max_length: {max_length} leaves nothing to learn from; give at least 2")
    if readable is not None and max_length > readable:
        notice(f"max_length: {max_length} is more than the {readable} tokens the tokenizer says its model reads")
    return max_length
