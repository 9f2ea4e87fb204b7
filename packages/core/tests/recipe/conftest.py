"""A toy plugin on disk, found the way every plugin is found."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from automodel.plugins import Plugins, discover
from automodel.recipe import Recipe, RecipeError, load_recipe

PLUGIN = """
from automodel import Kind, Provider, hookimpl
from toybox.things import model as aliased

@hookimpl
def model_providers():
    return [
        Provider("toy-model", "toybox.things:model", aliases=("nemo_automodel.Toy.from_pretrained",)),
        Provider("toy-config", "toybox.things:Config"),
        Provider("needs-missing", "toybox.needs_missing:model"),
        Provider("picky", "toybox.things:picky"),
    ]

@hookimpl
def dataset_providers():
    return [Provider("rows", "toybox.things:Rows"), Provider("anything", "toybox.things:anything")]

@hookimpl
def collate_providers():
    return [Provider("toy-collate", "toybox.things:collate")]

@hookimpl
def dataloader_providers():
    return [Provider("toy-loader", "toybox.things:loader")]

@hookimpl
def logger_providers():
    return [Provider("notebook", "toybox.things:notebook")]
"""

THINGS = '''
from __future__ import annotations
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from automodel.errors import InputError

Dtype = Literal["auto", "bfloat16"]

def model(path: str, *, layers: int = 2, rate: float = 0.1, frozen: bool = False, dtype: Dtype = "auto",
          size: int | None = None, names: list[str] | str = "all", counts: list[int] = [], where: Path = Path("."),
          betas: tuple[float, float] = (0.9, 0.99), extra: dict[str, int] | None = None, note: str | None = None):
    """A model.

    Args:
        path: where it is,
            on disk.
        layers (int): how many.
    """
    return {"path": path, "layers": layers, "size": size, "where": where}

@dataclass(frozen=True)
class Config:
    """A model from its configuration.

    Args:
        width: of each layer.
    """
    width: int
    depth: int = 2
    tags: list[str] = field(default_factory=list)
    made: str = field(init=False, default="")

class Rows:
    def __init__(self, path: str, processor, seed: int = 0, transform: Callable[[Any], Any] | None = None):
        self.path, self.processor, self.seed, self.transform = path, processor, seed, transform

    @classmethod
    def read(cls, path: str):
        return cls(path, None)

def shell(command: str):
    os.system(command)

def collate(processor, marker: str = ""):
    return ("collate", processor, marker)

def loader(dataset, batch_size: int = 1, collate_fn: Callable | None = None, stages: Sequence[Callable] = ()):
    return {"dataset": dataset, "batch_size": batch_size, "collate_fn": collate_fn, "stages": stages}

def anything(path: str = "", **options: Any):
    return options

def notebook(project: str = "", api_key: str | None = None, tags: list[str] | None = None):
    return project

def picky(path: str):
    raise InputError(f"{path} holds no model")
'''


@pytest.fixture(scope="session")
def toybox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugins]:
    directory = tmp_path_factory.mktemp("site")
    package = directory / "toybox"
    package.mkdir()
    files = {"__init__": "", "plugin": PLUGIN, "things": THINGS, "needs_missing": "import absent_xyz\ndef model(): ..."}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    sys.path.insert(0, str(directory))
    entries = [
        EntryPoint("automodel-core", "automodel.plugin", "automodel"),
        EntryPoint("toybox", "toybox.plugin", "automodel"),
    ]
    yield discover(entries)
    sys.path.remove(str(directory))


Load = Callable[..., Recipe]


@pytest.fixture
def load(toybox: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load recipes from texts: `load("model: ...", overrides=[...], env={...})`."""
    monkeypatch.chdir(tmp_path)

    def load_texts(
        *texts: str,
        overrides: Sequence[str] | Mapping[str, Any] = (),
        env: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Recipe:
        paths = [Path(f"r{index or ''}.yaml") for index in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return load_recipe(paths, overrides, plugins=toybox, env=env or {}, **more)

    return load_texts


@pytest.fixture
def problems(load: Load) -> Callable[..., str]:
    """The message about a recipe that is wrong."""

    def message(*texts: str, **more: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            load(*texts, **more)
        return str(caught.value)

    return message
