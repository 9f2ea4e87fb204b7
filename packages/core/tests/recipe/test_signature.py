"""Signatures are read from source."""

import inspect
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from automodel.plugins import Plugins, installed
from automodel.recipe import read_signature
from automodel.recipe.signature import key

SOURCE = '''
from __future__ import annotations
import typing as t
from collections import abc
from dataclasses import KW_ONLY, InitVar, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Annotated, ClassVar, Generic, Literal, Optional, TypeVar, Union, overload
from .other import Base, helper as renamed
from .other import *
from . import other
if t.TYPE_CHECKING:
    import torch
    from elsewhere import Thing

T = TypeVar("T")
Mode = Literal["a", "b"]
Modes = list[Mode]
alias = renamed
again = other.helper

@overload
def function(x: int) -> int: ...
@overload
def function(x: str) -> str: ...
def function(a: int, b: "int | None" = None, c: Optional[float] = 1e-3, *args, d: Mode = "a", e: Modes = [],
             f: t.Union[int, Thing] = 0, g: Thing | None = None, h: torch.dtype = None, i: abc.Mapping[str, int] = {},
             j: Annotated[int, "doc"] = 2, k: str | PathLike[str] = "", l=-1, m: int = None, n: list[Thing] = (),
             o: T = 0, p: Path = Path("."), q: t.Any = 3, **rest):
    """Do it.

    Args:
        a: first:
            of all.
        b (int, optional): second.
        **rest: more.

    Returns:
        x: no parameter.
    """

class Plain:
    """Args:
        x: from the class.
    """
    def __init__(self, x: int, /, y: int = 1): ...
    @classmethod
    def make(cls, z: int): ...
    @staticmethod
    def fixed(w: int): ...
    def method(self): ...

class Child(Base[int]):
    pass

class Unreadable(t.NamedTuple("N", [])):
    pass

class NoArguments: ...

@dataclass
class Parent:
    first: int
    shared: ClassVar[int] = 0

@dataclass(frozen=True, kw_only=True)
class Fields(Parent):
    second: list[int] = field(default_factory=list)
    _: KW_ONLY
    third: InitVar[str] = "x"
    hidden: int = field(init=False)
    fourth: float = field(default=2.5)

try:
    from fast import quick
except ImportError:
    def quick(x: int): ...

number = 3
'''
OTHER = """
from typing import Generic, TypeVar
T = TypeVar("T")
class Base(Generic[T]):
    def __init__(self, inherited: int): ...
    @classmethod
    def load(cls, path: str): ...
def helper(x: int = 1): ...
def starred(): ...
def _private(): ...
"""


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("read")
    (directory / "readme_pkg").mkdir()
    for name, text in {"__init__": "raise RuntimeError('imported')", "main": SOURCE, "other": OTHER}.items():
        (directory / "readme_pkg" / f"{name}.py").write_text(text)
    sys.path.insert(0, str(directory))
    yield
    sys.path.remove(str(directory))


def parameters(attribute: str) -> list[str]:
    return list(read_signature(f"readme_pkg.main:{attribute}").parameters)


@pytest.mark.parametrize(
    ("name", "annotation", "default", "takes_target"),
    [
        ("a", int, None, False), ("b", int | None, None, False), ("c", float | None, 1e-3, False),
        ("d", Literal["a", "b"], "a", False), ("e", list[Literal["a", "b"]], [], True), ("f", int, 0, True),
        ("g", type(None), None, True), ("h", Any, None, True), ("j", int, 2, False), ("k", str | Path, "", False),
        ("l", Any, -1, True), ("m", int | None, None, False), ("n", list[Any], (), True), ("o", Any, 0, True),
        ("p", Path, "Path('.')", False), ("q", Any, 3, True),
    ],
)  # fmt: skip
def test_annotations_and_defaults_are_evaluated(name: str, annotation: Any, default: Any, takes_target: bool) -> None:
    parameter = read_signature("readme_pkg.main:function").parameters[name]
    assert parameter.annotation == annotation
    assert parameter.default == default
    assert parameter.takes_target is takes_target


def test_docs_come_from_the_args_section() -> None:
    signature = read_signature("readme_pkg.main:function")
    assert signature.parameters["a"].doc == "first: of all."
    assert signature.parameters["b"].doc == "second."
    assert signature.parameters["a"].required
    assert not signature.parameters["b"].required
    assert signature.open
    assert "x" not in signature.parameters
    assert read_signature("readme_pkg.main:Plain.make").doc == ""


@pytest.mark.parametrize(
    ("attribute", "names"),
    [
        ("Plain", ["y"]), ("Plain.make", ["z"]), ("Plain.fixed", ["w"]), ("Child", ["inherited"]),
        ("Child.load", ["path"]), ("NoArguments", []), ("Fields", ["first", "second", "third", "fourth"]),
        ("alias", ["x"]), ("again", ["x"]), ("renamed", ["x"]), ("other.helper", ["x"]), ("starred", []),
        ("quick", ["x"]),
    ],
)  # fmt: skip
def test_functions_classes_methods_and_aliases_are_found(attribute: str, names: list[str]) -> None:
    assert parameters(attribute) == names


def test_a_definition_is_judged_where_it_finally_lives() -> None:
    assert read_signature("readme_pkg.main:alias").location == "readme_pkg.other:helper"
    inherited = read_signature("readme_pkg.main:Child.load")
    assert (inherited.location, inherited.source_module) == ("readme_pkg.main:Child.load", "readme_pkg.other")


def test_a_class_whose_base_cannot_be_read_takes_anything() -> None:
    assert read_signature("readme_pkg.main:Unreadable").open
    assert not read_signature("readme_pkg.main:NoArguments").open


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("readme_pkg.main:functoin", "`readme_pkg.main` has no `functoin`; did you mean `function`?"),
        ("readme_pkg.main:Plain.mak", "`Plain` has no `mak`; did you mean `make`?"),
        ("readme_pkg.main:Plain.method", "is a method of an object"),
        ("readme_pkg.main:number", "is no function or class"),
        ("readme_pkg.main:other", "is a module"),
        ("readme_pkg.absent:x", "no Python source of a module `readme_pkg.absent`"),
        ("absent_pkg.x:y", "no Python source of a module"),
        ("readme_pkg.main:_private", "has no `_private`"),
        ("sys:exit", "no Python source"),
    ],
)
def test_a_target_that_is_missing_is_told_with_the_reason(target: str, reason: str) -> None:
    with pytest.raises(LookupError) as caught:
        read_signature(target)
    assert reason in str(caught.value)


def test_nothing_is_imported() -> None:
    read_signature("readme_pkg.main:function")
    assert "readme_pkg" not in sys.modules


CORE = [
    entry.provider
    for kind in installed().registry.kinds
    for entry in installed().registry.providers(kind)
    if entry.plugin == "automodel-core"
]


@pytest.mark.parametrize("provider", CORE, ids=lambda provider: provider.name)
def test_what_is_read_is_what_python_says(provider: Any, toybox: Plugins) -> None:
    signature = read_signature(provider.target)
    real = inspect.signature(provider.load()).parameters.values()
    named = {key(p.name): p for p in real if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    assert list(signature.parameters) == list(named)
    assert {n: p.required for n, p in signature.parameters.items()} == {
        n: p.default is inspect.Parameter.empty for n, p in named.items()
    }
