"""Rows from files: each with its place, parsed only when it is asked for."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from automodel import InputError

from automodel_huggingface.bad_rows import BadRowError, kind_name
from automodel_huggingface.files import file_kind

_NOT_AN_OBJECT = "not a JSON object of columns, but "
_WHITESPACE = " \t\n\r"


class Row(NamedTuple):
    """One row as it was read.

    Args:
        file: the file's path as it was given, or the Hub data set's name.
        number: its line in a text file, its row in Parquet and on the Hub; the first is 1.
        content: a line of JSON that is not parsed yet, the columns, or what is wrong with the row.
    """

    file: str
    number: int
    content: bytes | dict[str, Any] | BadRowError

    @property
    def place(self) -> str:
        """How people find it: `train.jsonl:17`, `train.parquet row 17`."""
        return f"{self.file} row {self.number}" if _in_rows(self.file) else f"{self.file}:{self.number}"

    def columns(self) -> dict[str, Any]:
        """The row's columns.

        Raises:
            BadRowError: it is no JSON object, or broken.
        """
        if isinstance(self.content, BadRowError):
            raise self.content
        if not isinstance(self.content, bytes):
            return self.content
        try:
            line = self.content.rstrip(b"\r\n")  # so that an end that comes too soon is told by its column
            value = json.loads(line.decode("utf-8-sig" if self.number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise BadRowError(f"not UTF-8 text (byte {error.start + 1} of the line)") from error
        except json.JSONDecodeError as error:
            raise BadRowError(f"broken JSON at column {error.colno}: {error.msg}") from error
        except RecursionError as error:
            raise BadRowError("JSON nested too deeply") from error
        if not isinstance(value, dict):
            raise BadRowError(_NOT_AN_OBJECT + kind_name(value))
        return value


def _in_rows(file: str) -> bool:
    return file_kind(Path(file)) in {None, ".parquet"}


def read_rows(files: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of all files, one after another; blank lines are passed over.

    Raises:
        InputError: a file cannot be read at all, or none has a row.
    """
    num_rows = 0
    readers = {".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    for path in files:
        reader = readers.get(file_kind(path) or "", _json_lines)
        try:
            for row in reader(path):
                num_rows += 1
                yield row
        except (OSError, EOFError) as error:
            raise InputError(f"the data file {path} cannot be read: {error}") from error
    if not num_rows:
        raise InputError(f"{', '.join(map(str, files[:3]))}: empty, there are no rows to learn from")


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _json_lines(path: Path) -> Iterator[Row]:
    name = str(path)
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.isspace():
                yield Row(name, number, line)


def _json(path: Path) -> Iterator[Row]:
    """The elements of a JSON array, each with its line; a file that starts with an object is read as JSON Lines."""
    with _open(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"the data file {path} is not UTF-8 text (byte {error.start + 1})") from error
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        yield from _json_lines(path)
        return
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
            position = _skip(text, position)
            if text[position : position + 1] not in {",", "]"}:
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except json.JSONDecodeError as error:  # nothing after it can be trusted
            raise InputError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}") from error
        yield Row(str(path), line, value if isinstance(value, dict) else BadRowError(_NOT_AN_OBJECT + kind_name(value)))
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    name, delimiter = str(path), "\t" if file_kind(path) == ".tsv" else ","
    with _open(path) as file:
        text = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) < len(header):
                raise InputError(f"{path}:1: two columns have the same name: {', '.join(header)}")
            line = reader.line_num + 1
            for fields in reader:
                if fields:
                    yield Row(name, line, _csv_columns(header, fields))
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: broken CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{reader.line_num + 1}: not UTF-8 text") from error


def _csv_columns(header: list[str], fields: list[str]) -> dict[str, Any] | BadRowError:
    if len(fields) != len(header):
        return BadRowError(f"{len(fields)} fields, but the header has {len(header)} columns")
    return dict(zip(header, fields, strict=True))


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowInvalid  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    name, number = str(path), 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(name, number, columns)
    except ArrowInvalid as error:
        raise InputError(f"the data file {path} cannot be read: {error}") from error


def load_hub(name: str, config: str | None, split: str | None, streaming: bool) -> Any:
    """The `datasets` data set of that name on the Hugging Face Hub.

    Raises:
        InputError: the package is not installed, or the Hub does not give it.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"there is no file or directory {name} here, and reading the Hub data set of that name needs the package "
            f"`datasets`: install automodel-huggingface[hub]"
        ) from error
    if split is None:
        raise InputError(f"the Hub data set {name} needs a `split:` (train, validation, train[:1000], ...)")
    try:
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError) as error:  # DatasetNotFoundError and the Hub's errors are OSErrors
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"there is no file {name} here, and the Hub data set of that name cannot be read: {first}"
        ) from error


def hub_rows(name: str, dataset: Any) -> Iterator[Row]:
    """The rows of a Hub data set."""
    for number, columns in enumerate(dataset, start=1):
        yield Row(name, number, columns)
