"""Where every piece of a recipe stands, and the one error that lists everything wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from automodel.errors import InputError

Path_: TypeAlias = "tuple[str | int, ...]"
"""Keys and list indices from the top of the recipe: `("dataloader", "collate_fn")`."""


def dotted(path: Path_) -> str:
    """The path as people write it on the command line."""
    return ".".join(str(part) for part in path)


def has_item(value: Any, part: str | int) -> bool:
    """Whether `value[part]` is an entry of a dict or an element of a list."""
    if isinstance(value, list):
        return isinstance(part, int) and 0 <= part < len(value)
    return isinstance(value, dict) and part in value


@dataclass(frozen=True)
class Place:
    """Where something was written.

    Args:
        source: the file as the user named it, or `command line`.
        line: from 1; 0 for what stands in no file.
        column: from 1.
        text: the line, or the words of the command line.
    """

    source: str
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    @property
    def excerpt(self) -> str:
        """The line with a caret under the column; nothing for what stands in no file."""
        if not self.line:
            return ""
        return f"\n    {self.text.replace(chr(9), ' ')}\n    {' ' * (self.column - 1)}^"


@dataclass(frozen=True)
class Node:
    """A value of the recipe with its place.

    Args:
        value: a scalar, a dict of Nodes or a list of Nodes.
        place: where the value begins.
        key: where its key stands, if it has one.
        plain: a scalar without quotes, which is typed again after `${VAR}` has been replaced.
        secret: it came from an environment variable that holds a secret.
    """

    value: Any
    place: Place
    key: Place | None = None
    plain: bool = False
    secret: bool = False

    def at(self, path: Path_) -> Node | None:
        """The node at `path` below this one, or None."""
        node = self
        for part in path:
            if not has_item(node.value, part):
                return None
            node = node.value[part]
        return node

    def plain_data(self) -> Any:
        """Dicts, lists and scalars without places."""
        if isinstance(self.value, dict):
            return {key: child.plain_data() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain_data() for child in self.value]
        return str(self.value) if isinstance(self.value, str) else self.value


def merged(earlier: Node, later: Node) -> Node:
    """Both, deeply: mappings are joined, of everything else the later one wins."""
    if not (isinstance(earlier.value, dict) and isinstance(later.value, dict)):
        return later
    value = dict(earlier.value)
    for key, child in later.value.items():
        value[key] = merged(value[key], child) if key in value else child
    return replace(earlier, value=value)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with its place and the key it concerns."""

    place: Place
    path: Path_
    text: str

    def __str__(self) -> str:
        key = dotted(self.path)
        if not self.place.line and self.place.text:
            words = self.place.text.removeprefix("--")
            named = "" if not key or words.startswith((f"{key}=", f"{key} ")) else f"{key}: "
            return f"{self.place.source}: {self.place.text}: {named}{self.text}"
        return f"{self.place}: {key + ': ' if key else ''}{self.text}{self.place.excerpt}"


@dataclass
class Problems:
    """What is wrong with a recipe so far."""

    files: list[str]
    found: list[Problem] = field(default_factory=list)

    def add(self, place: Place, path: Path_, text: str) -> None:
        """Note a problem; the same one at the same place is noted once."""
        problem = Problem(place, path, text)
        if problem not in self.found:
            self.found.append(problem)

    def concern(self, path: Path_) -> bool:
        """Whether something at this path or below it is known to be wrong."""
        return any(problem.path[: len(path)] == path for problem in self.found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def raise_any(self) -> None:
        """Raise what was found, if anything was."""
        if self.found:
            raise RecipeError(self.files, self.found)


class RecipeError(InputError):
    """A recipe is wrong; the message lists every problem in the order of the files, then of the command line."""

    def __init__(self, files: Iterable[str], problems: Iterable[Problem]) -> None:
        order = {name: index for index, name in enumerate(files)}

        def position(problem: Problem) -> tuple[int, int, int]:
            return order.get(problem.place.source, len(order)), problem.place.line, problem.place.column

        self.problems = sorted(problems, key=position)
        count = len(self.problems)
        head = f"{', '.join(order) or 'the recipe'}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *map(str, self.problems)]))
