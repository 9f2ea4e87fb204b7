"""A checked target: builds what the recipe describes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from automodel.errors import InputError
from automodel.recipe.signature import parameter_name, read_signature
from automodel.recipe.source import Path_, dotted

POSITION = re.compile(r"(?:\S.*?:\d+:\d+|command line): ")

FIRST_WORD = re.compile(r"\w+")


@dataclass
class Target:
    """One provider or callable with checked arguments.

    Args:
        path: where it stands in the recipe: `("dataloader", "collate_fn")`.
        name: as written, or the default's name.
        location: `"package.module:attribute"`.
        kind: of the provider, if it is one.
        kwargs: the arguments, converted; may hold Targets nested in dicts and lists.
        position: `file:line:column`, `command line`, or empty if the section is not in the recipe.
        positions: the same of the arguments that the recipe gives.
        plugin: that brings it, None for a dotted path.
    """

    path: Path_
    name: str
    location: str
    kind: str | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    position: str = ""
    positions: dict[str, str] = field(default_factory=dict)
    plugin: str | None = None

    def accepts(self, parameter: str) -> bool:
        """Whether the callable has a parameter of that name (`**kwargs` does not count)."""
        return parameter in read_signature(self.location).parameters

    def build(self, **injected: Any) -> Any:
        """Import the callable and call it with the arguments.

        Nested targets are built first. Of `injected`, each callable gets what it has parameters for.

        Raises:
            InputError: it cannot be imported, or it found its arguments wrong; with the position in the recipe.
        """
        made = self.load()
        kwargs = {name: _built(value, injected) for name, value in self.kwargs.items()}
        given = {name: value for name, value in injected.items() if name not in kwargs and self.accepts(name)}
        with self.placing_errors():
            return made(**{parameter_name(name): value for name, value in kwargs.items()}, **given)

    @contextmanager
    def placing_errors(self) -> Iterator[None]:
        """Give an InputError, of what this builds, its place: of the argument that it begins with, or the section's."""
        try:
            yield
        except InputError as error:
            text = str(error)
            if not self.position or POSITION.match(text):
                raise
            argument = FIRST_WORD.match(text)
            if argument is not None and argument[0] in self.positions:
                raise InputError(f"{self.positions[argument[0]]}: {dotted(self.path)}.{text}") from error
            raise InputError(f"{self.position}: {dotted(self.path)}: {text}") from error

    def load(self) -> Any:
        """Import the callable.

        Raises:
            InputError: something that it imports is missing or fails.
        """
        module, _, attribute = self.location.partition(":")
        where = f"{self.position}: {dotted(self.path)}" if self.position else dotted(self.path)
        try:
            value: Any = importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"{where}: `{self.name}` cannot be imported: {error}") from error
        for part in attribute.split("."):
            try:
                value = getattr(value, part)
            except AttributeError as error:
                raise InputError(f"{where}: `{self.name}` cannot be imported: {error}") from error
        return value


def _built(value: Any, injected: dict[str, Any]) -> Any:
    if isinstance(value, Target):
        return value.build(**injected)
    if isinstance(value, dict):
        return {key: _built(child, injected) for key, child in value.items()}
    if isinstance(value, list):
        return [_built(child, injected) for child in value]
    return value
