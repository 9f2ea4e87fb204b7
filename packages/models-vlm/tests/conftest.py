"""Tiny models of four families, a cache of its own for each test, pictures of one colour, and rows written to files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
from automodel import notices
from PIL import Image, ImageColor


@pytest.fixture(scope="session")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family's tiny model, made once."""
    return functools.cache(lambda family: tiny_vlm.save(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="session")
def processor_of(directory_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """The processor of a family's tiny model."""
    from automodel_models_vlm.image_text_to_text import from_pretrained

    return functools.cache(lambda family: from_pretrained(str(directory_of(family))).load_processor())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setenv("AUTOMODEL_CACHE", str(directory))
    return directory


@pytest.fixture(autouse=True)
def fresh_notices() -> Any:
    with notices.strictness(False):
        yield


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines; strings are written as they are."""

    def write_rows(*rows: Any, name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Write a picture of one colour beside the rows, by default `red.png` for red."""

    def save(colour: str, name: str | None = None, size: tuple[int, int] = (40, 40)) -> Path:
        path = tmp_path / (name or f"{colour}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return save


@pytest.fixture
def seen() -> Callable[[Mapping[str, Any]], list[str]]:
    """The colours of a sample's images, in their order."""
    names = {ImageColor.getrgb(name): name for name in ("red", "blue", "white", "black")}
    return lambda sample: [names[image.getpixel((0, 0))] for image in sample["images"]]


@pytest.fixture
def told() -> Callable[[Mapping[str, Any]], list[str]]:
    """What each message of a sample says, with [image] where an image stands."""

    def messages(sample: Mapping[str, Any]) -> list[str]:
        return [
            f"{message['role']}: " + "".join(part.get("text", "[image]") for part in message["content"])
            for message in sample["conversation"].messages
        ]

    return messages
