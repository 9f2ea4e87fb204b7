"""The manifest: every file of a checkpoint with its size and checksum, and what made it."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1


def write_manifest(directory: Path, about: dict[str, Any]) -> None:
    """Write `manifest.json` for all files below `directory`, with `about` beside them."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as threads:  # hashing lets other threads run; a large model has hundreds of files
        files = {
            path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, threads.map(checksum, paths), strict=True)
        }
    manifest = {"format": FORMAT, **about, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest.

    Raises:
        OSError: there is none.
        ValueError: it is no JSON of ours.
    """
    return parsed((directory / MANIFEST).read_text(encoding="utf-8"))


def parsed(text: str | bytes) -> dict[str, Any]:
    """The manifest that a text is.

    Raises:
        ValueError: it is no JSON of ours.
    """
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is not of format {FORMAT}")
    return manifest


def problems(directory: Path) -> list[str]:
    """What is wrong with a checkpoint's files, one line each; an empty list for a whole one."""
    try:
        files = read_manifest(directory)["files"]
        expected = {name: (int(file["size"]), str(file["sha256"])) for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"]
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: _problem(directory, name, *expected[name]), expected)
        return [problem for problem in found if problem]


def _problem(directory: Path, name: str, size: int, digest: str) -> str | None:
    path = directory / name
    try:
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        return None if checksum(path) == digest else f"{name} has another checksum"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
