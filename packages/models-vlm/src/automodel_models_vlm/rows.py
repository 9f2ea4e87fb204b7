"""Rows with images, read one by one: `datasets` keeps them in memory-mapped files, this knows where each came from."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from automodel import InputError
from automodel_huggingface.bad_rows import BadRowError
from automodel_huggingface.cache import cache_directory
from automodel_huggingface.files import digest_of_files, file_kind, find_files
from automodel_huggingface.sources import Row, load_hub, read_rows

_LINE = datasets.Features(
    {
        "file": datasets.Value("string"),
        "number": datasets.Value("int64"),
        "content": datasets.Value("binary"),
        "problem": datasets.Value("string"),
    }
)
_END_BYTES = 1 << 20


@dataclass(frozen=True)
class Table:
    """Rows of Parquet files, of the Hub, or of a directory that `datasets` has saved."""

    data: Any
    files: tuple[str, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.data)

    def take(self, indices: Sequence[int]) -> list[Row]:
        """The rows of these indices."""
        return [self._row(*row) for row in zip(indices, self.data[indices].to_pylist(), strict=True)]

    def without_images(self) -> Iterator[Row]:
        """The rows, with empty `bytes` instead of each image that they hold in columns of their own."""
        present = {name: _images_present(self.data, name) for name in _image_columns(self.data.features)}
        rest = self.data.remove_columns(list(present))
        for index, columns in enumerate(table.to_pylist()[0] for table in rest):
            yield self._row(index, {**{name: images[index] for name, images in present.items()}, **columns})

    def _row(self, index: int, columns: dict[str, Any]) -> Row:
        file = bisect_right(self.starts, index) - 1
        return Row(self.files[file], index - self.starts[file] + 1, columns)


@dataclass(frozen=True)
class Lines:
    """Rows of JSON and CSV files, each kept as its text."""

    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def take(self, indices: Sequence[int]) -> list[Row]:
        """The rows of these indices."""
        return [self._row(kept) for kept in self.data.with_format("arrow")[indices].to_pylist()]

    def without_images(self) -> Iterator[Row]:
        """The rows: their images are files, or text."""
        return map(self._row, self.data)

    def _row(self, kept: dict[str, Any]) -> Row:
        problem = kept["problem"]
        return Row(kept["file"], kept["number"], kept["content"] if problem is None else BadRowError(problem))


Rows = Table | Lines


def find_rows(data_path: str | Sequence[str], split: str | None, name: str | None = None) -> Rows:
    """The rows of files, of a directory (also one that `datasets` has saved), or of a data set of the Hub.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    if isinstance(data_path, str) and _is_saved(Path(data_path).expanduser()):
        saved = str(Path(data_path).expanduser())
        return Table(_saved(saved, split).with_format("arrow"), (saved,), (0,))
    found = find_files(data_path, split)
    if isinstance(found, str):
        return Table(load_hub(found, name, split, streaming=False).with_format("arrow"), (found,), (0,))
    cache = str(cache_directory() / "images")
    parquet = [path for path in found if file_kind(path) == ".parquet"]
    if parquet and len(parquet) < len(found):
        other = next(path for path in found if path not in parquet)
        raise InputError(f"data_path means Parquet files and others ({other}): make two data sets of them")
    try:
        with _quiet():
            if parquet:
                return _parquet(parquet, cache)
            data = datasets.Dataset.from_generator(
                _kept,
                features=_LINE,
                cache_dir=cache,
                gen_kwargs={"paths": [str(path) for path in found], "digest": digest_of_files(found)},
            )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"the data {data_path} cannot be read: {error.__cause__ or error}") from error
    except OSError as error:
        raise InputError(
            f"the rows cannot be kept in {cache} ({error}); set AUTOMODEL_CACHE to a directory that can be written"
        ) from error
    return Lines(data)


def _parquet(files: Sequence[Path], cache: str) -> Table:
    from pyarrow import ArrowInvalid  # type: ignore[import-untyped]
    from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

    starts = [0]
    for path in files:
        try:
            starts.append(starts[-1] + read_metadata(path).num_rows)
        except ArrowInvalid as error:
            raise InputError(f"the data file {path} cannot be read: {error}") from error
    if not starts[-1]:
        raise InputError(f"{', '.join(map(str, files[:3]))}: empty, there are no rows to learn from")
    directory = f"{cache}/{_digest(files)}"  # `datasets` itself knows a file by its time, which a copy may keep
    data = datasets.Dataset.from_parquet([str(path) for path in files], cache_dir=directory)
    return Table(data.with_format("arrow"), tuple(map(str, files)), tuple(starts[:-1]))


def _digest(files: Sequence[Path]) -> str:
    """Changes when Parquet files do: by their sizes, times and ends, where Parquet says what is in them.

    Images are too many bytes to read all of them at every start.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END_BYTES))
            digest.update(f"{path.absolute()} {size} {path.stat().st_mtime_ns} ".encode() + file.read())
    return digest.hexdigest()[:32]


def _kept(paths: list[str], digest: str) -> Iterator[dict[str, Any]]:
    """What `Lines` keeps of each row; `digest` names the files' content, and with it what `datasets` has cached."""
    for row in read_rows([Path(path) for path in paths]):
        content, problem = row.content, None
        if isinstance(content, BadRowError):
            content, problem = b"", str(content)
        elif isinstance(content, dict):
            content = json.dumps(content).encode()
        yield {"file": row.file, "number": row.number, "content": content, "problem": problem}


def _is_saved(directory: Path) -> bool:
    return (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file()


def _saved(data_path: str, split: str | None) -> Any:
    try:
        loaded = datasets.load_from_disk(data_path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the saved data set {data_path} cannot be read: {error}") from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise InputError(f"the directory {data_path} holds the splits {', '.join(loaded)}: choose one with `split:`")
    return loaded[split]


def _image_columns(features: Any) -> list[str]:
    return [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image)
        or _is_list_of_images(feature)
        or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
    ]


def _images_present(data: Any, name: str) -> list[Any]:
    """For each row what a column of images holds, with empty bytes for each image."""
    from pyarrow import compute
    from pyarrow.types import is_struct  # type: ignore[import-untyped]

    column = data.data.column(name)
    if _is_list_of_images(data.features[name]):
        return [None if num is None else [b""] * num for num in compute.list_value_length(column).to_pylist()]
    if not is_struct(column.type):
        return [b"" if valid else None for valid in compute.is_valid(column).to_pylist()]
    there = compute.is_valid(compute.struct_field(column, "bytes")).to_pylist()
    paths = compute.struct_field(column, "path").to_pylist()
    return [b"" if valid else path for valid, path in zip(there, paths, strict=True)]


def _is_list_of_images(feature: Any) -> bool:
    return isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from drawing progress bars."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
