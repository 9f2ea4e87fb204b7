"""Which files a `data_path` means: paths, globs, directories, or a data set of the Hub."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from automodel import InputError
from automodel.suggest import did_you_mean

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "eval", "test")
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # what `datasets` writes
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def file_kind(path: Path) -> str | None:
    """The suffix that says how a file is read, `.gz` left aside; None for files that hold no rows."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in KINDS and not (path.suffix == ".gz" and suffix == ".parquet") else None


def find_files(data_path: str | Sequence[str], split: str | None) -> list[Path] | str:
    """The files, in the order given (those of a glob or directory by name), or the name of a Hub data set.

    Raises:
        InputError: nothing is there, a kind of file that is not read, or a directory of several splits without `split`.
    """
    parts = [data_path] if isinstance(data_path, str) else list(data_path)
    if not parts or not all(parts):
        raise InputError("data_path is empty: name a file, glob, directory or Hub data set")
    if len(parts) == 1 and _is_hub_name(parts[0]):
        return parts[0]
    files = [file for part in parts for file in _files_of(part, split)]
    doubled = sorted({str(file) for file in files if files.count(file) > 1})
    if doubled:
        raise InputError(f"data_path names a file twice: {', '.join(doubled)}")
    return files


def digest_of_files(files: Iterable[Path]) -> str:
    """Changes when the content or the order of the files does.

    Raises:
        InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"the data file {path} cannot be read: {error}") from error
        digest.update(str(path.suffixes).encode())
    return digest.hexdigest()


def _is_hub_name(part: str) -> bool:
    path = Path(part).expanduser()
    return (
        not path.exists() and _HUB_NAME.fullmatch(part) is not None and file_kind(path) is None and path.suffix != ".gz"
    )


def _files_of(part: str, split: str | None) -> list[Path]:
    path = Path(part).expanduser()
    if path.is_dir():
        return _files_in(path, split)
    if path.is_file():
        if file_kind(path) is None:
            raise InputError(
                f"the data file {part} is of a kind that is not read; read are {', '.join(KINDS)} (and .gz)"
            )
        return [path]
    if glob.has_magic(part):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 Path.glob takes no absolute patterns
        found = [Path(name) for name in matches if file_kind(Path(name))]
        if not found:
            raise InputError(f"no data file matches {part} (working directory: {Path.cwd()})")
        return found
    raise InputError(f"there is no data file {part}{_near(path)}")


def _files_in(directory: Path, split: str | None) -> list[Path]:
    # hidden files and directories are left to the tools that wrote them
    visible = [path for path in sorted(directory.glob("**/*")) if not _hidden(path.relative_to(directory))]
    files = [path for path in visible if path.is_file() and file_kind(path) and path.name not in _ABOUT]
    if not files:
        raise InputError(f"the directory {directory} holds no data file ({', '.join(KINDS)})")
    splits = {path: _split_of(path.relative_to(directory)) for path in files}
    if split is not None:
        chosen = [path for path in files if splits[path] == split or _starts(path.stem, split)]
        if not chosen:
            known = [name for name in splits.values() if name] or [path.name for path in files]
            raise InputError(f"the directory {directory} holds no file of split {split}{did_you_mean(split, known)}")
        return chosen
    if len(set(splits.values())) > 1:
        names = ", ".join(str(path.relative_to(directory)) for path in files[:6])
        raise InputError(f"the directory {directory} holds several splits ({names}): choose one with `split:`")
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _starts(stem: str, split: str) -> bool:
    return re.match(rf"{re.escape(split)}([-_.]|$)", stem) is not None


def _split_of(path: Path) -> str | None:
    for part in (path.stem, *reversed(path.parts[:-1])):
        for split in _SPLITS:
            if _starts(part, split):
                return split
    return None


def _near(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f": there is no directory {parent} (working directory: {Path.cwd()})"
    names = [entry.name for entry in parent.iterdir() if entry.is_dir() or file_kind(entry)]
    return did_you_mean(path.name, names) or f": {parent.resolve()} holds no data files"
