"""Values that the command line or a Python caller puts over the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from automodel.recipe.parse import parse_value
from automodel.recipe.scalars import typed
from automodel.recipe.secrets import HIDDEN, is_secret
from automodel.recipe.source import Node, Path_, Place, Problems, dotted

COMMAND_LINE = "command line"
KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*\Z")


def is_option(word: str) -> bool:
    """Whether a word of the command line is `--section.key` or `--section.key=value`."""
    return word.startswith("--") and "." in word.partition("=")[0]


def is_assignment(word: str) -> bool:
    """Whether a word of the command line is `section.key=value` or `section=value`."""
    key, equals, _ = word.partition("=")
    return bool(equals) and bool(KEY.match(key))


def parse_overrides(overrides: Sequence[str] | Mapping[str, Any], problems: Problems) -> Iterator[tuple[Path_, Node]]:
    """The overrides in their order, each as path and value."""
    if isinstance(overrides, Mapping):
        yield from _from_mapping(overrides, ())
    else:
        yield from _from_words(list(overrides), problems)


def apply(root: Node, path: Path_, node: Node, problems: Problems) -> Node:
    """The recipe with one value put over; mappings on the way to it are made if they are missing."""
    return _put(root, path, 0, node, problems)


def _from_words(words: list[str], problems: Problems) -> Iterator[tuple[Path_, Node]]:
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals and word.startswith("--") and words and not words[0].startswith("--"):
            value = words.pop(0)
            equals = " "
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        shown = HIDDEN if any(is_secret(part) for part in path if isinstance(part, str)) else value
        place = Place(COMMAND_LINE, text=f"{word.partition('=')[0]}{equals}{shown}")
        if not KEY.match(key):
            problems.add(place, (), "is no override: write `--section.key value` or `section.key=value`")
        elif not equals:
            hint = "--section.key value" if word.startswith("--") else "section.key=value"
            problems.add(place, (), f"has no value: write `{hint}`")
        else:
            yield path, _value(value, place)


def _value(text: str, place: Place) -> Node:
    if text[:1] in ("[", "{"):
        return parse_value(text, place) or Node(text, place)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return Node(text[1:-1], place)
    return Node(typed(text), place, plain=True)


def _from_mapping(overrides: Mapping[str, Any], path: Path_) -> Iterator[tuple[Path_, Node]]:
    for key, value in overrides.items():
        parts: Path_ = tuple(int(part) if part.isdigit() else part for part in str(key).split("."))
        here = (*path, *parts)
        if isinstance(value, Mapping) and value:
            yield from _from_mapping(value, here)
        else:
            shown = HIDDEN if any(is_secret(part) for part in here if isinstance(part, str)) else repr(value)
            yield here, _from_python(value, Place("overrides", text=f"{dotted(here)}={shown}"))


def _from_python(value: Any, place: Place) -> Node:
    if isinstance(value, Mapping):
        return Node({key: _from_python(child, place) for key, child in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([_from_python(child, place) for child in value], place)
    return Node(value, place)


def _put(node: Node, path: Path_, depth: int, new: Node, problems: Problems) -> Node:
    if depth == len(path):
        return new
    part = path[depth]
    if isinstance(node.value, list):
        if not isinstance(part, int) or part >= len(node.value):
            count = len(node.value)
            problems.add(
                new.place, (), f"`{dotted(path[:depth])}` is a list of {count}; its elements are 0 to {count - 1}"
            )
            return node
        elements = list(node.value)
        elements[part] = replace(_put(elements[part], path, depth + 1, new, problems), key=elements[part].key)
        return replace(node, value=elements)
    if not isinstance(node.value, dict) and node.value is not None:
        problems.add(new.place, (), f"`{dotted(path[:depth])}` is a single value and has no keys")
        return node
    children = dict(node.value or {})
    old = children.get(part, Node(None, new.place, key=new.place))
    made = _put(old, path, depth + 1, new, problems)
    children[part] = replace(made, key=new.place if made is new else old.key)
    place = new.place if node.value is None else node.place
    return replace(node, value=children, place=place)
