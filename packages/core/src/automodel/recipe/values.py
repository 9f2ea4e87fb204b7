"""Checks and converts one value against a type, more strictly than pydantic, in words for people."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, Strict, TypeAdapter, ValidationError

from automodel.recipe.annotations import members, walk
from automodel.recipe.scalars import NoneWord, typed
from automodel.recipe.source import Path_, has_item
from automodel.suggest import did_you_mean

NAMES = {int: "integer", float: "number", str: "string", bool: "true or false", NoneType: "null", Path: "path"}
CONTAINERS = {list: "list", tuple: "list", set: "list", frozenset: "list", dict: "mapping"}


def _number(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise ValueError("not a number")
    return value


STRICT: dict[Any, Any] = {
    int: Annotated[int, BeforeValidator(_number)],
    float: Annotated[float, BeforeValidator(_number)],
    str: Annotated[str, Strict()],
    bool: Annotated[bool, Strict()],
}


def NoneFromWord(annotation: Any) -> BeforeValidator:  # noqa: N802  (stands where a pydantic class would)
    """Read `none` and `null` in any case as null; a quoted one stays a string where the type admits strings."""
    literals = {str(v).lower() for m in members(annotation) if get_origin(m) is Literal for v in get_args(m)}
    takes_strings = str in members(annotation)

    def convert(value: Any) -> Any:
        if not isinstance(value, str) or value.lower() not in ("none", "null") or value.lower() in literals:
            return value
        return None if isinstance(value, NoneWord) or not takes_strings else value

    return BeforeValidator(convert)


def strict(annotation: Any) -> Any:
    """The annotation with pydantic's conversions narrowed as `STRICT` says."""
    if annotation in STRICT:
        return STRICT[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        inner: Any = Union.__getitem__(tuple(strict(member) for member in arguments))
        return Annotated[inner, NoneFromWord(annotation)] if NoneType in arguments else inner
    if origin in (None, Literal):
        return annotation
    return origin[tuple(item if item is ... else strict(item) for item in arguments)]


def checked(value: Any, annotation: Any) -> tuple[Any, list[tuple[Path_, str]]]:
    """The value as the annotation wants it, and what is wrong with it: the path inside the value, and a sentence."""
    if annotation is Any:
        return value, []
    try:
        return _adapter(annotation).validate_python(value), []
    except ValidationError as error:
        paths = sorted({_inside(value, part["loc"]) for part in error.errors()}, key=str)
        if len(paths) > 1:
            paths = [path for path in paths if path]
        return value, [(path, _sentence(value, annotation, path)) for path in paths]


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(strict(annotation))


def _inside(value: Any, location: tuple[int | str, ...]) -> Path_:
    """The part of pydantic's location that leads through the value (the rest names members of unions)."""
    path: list[int | str] = []
    for part in location:
        if has_item(value, part):
            path.append(part)
            value = value[part]
    return tuple(path)


def _sentence(value: Any, annotation: Any, path: Path_) -> str:
    for part in path:
        value = value[part]
    wanted = walk(annotation, path)
    return f"expected {describe(wanted)}, found {found(value)}{_hint(value, wanted)}"


def describe(annotation: Any) -> str:
    """A type in words: `integer or null`, `list of string`."""
    if annotation is Any:
        return "anything"
    words: list[str] = []
    for member in members(annotation):
        words += _words(member)
    last = words.pop()
    return f"{', '.join(words)} or {last}" if words else last


def _words(member: Any) -> Iterator[str]:
    origin, arguments = get_origin(member), get_args(member)
    if origin is Literal:
        yield from (f"`{value}`" for value in arguments)
    elif member in NAMES:
        yield NAMES[member]
    elif origin in (dict,) or getattr(origin or member, "__name__", "") in ("Mapping", "dict"):
        yield f"mapping of {describe(arguments[0])} to {describe(arguments[1])}" if arguments else "mapping"
    elif origin is tuple and ... not in arguments:
        yield f"list of {len(arguments)} ({', '.join(describe(item) for item in arguments)})"
    elif arguments:
        yield f"list of {describe(arguments[0])}"
    else:
        yield CONTAINERS.get(member, "list")


def found(value: Any) -> str:
    """A value in words: `5 (integer)`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()}"
    if isinstance(value, str):
        shown = value if len(value) <= 80 else value[:77] + "..."
        return f"`{shown}` (string)" if value else "an empty string"
    if isinstance(value, int | float):
        return f"{value} ({NAMES[type(value)]})"
    return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"


def _hint(value: Any, wanted: Any) -> str:
    kinds = members(wanted)
    literals = [str(v) for kind in kinds if get_origin(kind) is Literal for v in get_args(kind)]
    if isinstance(value, str):
        if literals:
            return did_you_mean(value, literals) if did_you_mean(value, literals).startswith("; did") else ""
        again = typed(value)
        if (isinstance(again, int | float) and not isinstance(again, bool) and {int, float} & set(kinds)) or (
            isinstance(again, bool) and bool in kinds
        ):
            return "; write it without quotes"
        if bool in kinds and value.lower() in ("yes", "on", "y"):
            return "; YAML 1.2 writes true"
        if bool in kinds and value.lower() in ("no", "off", "n"):
            return "; YAML 1.2 writes false"
        if any(get_origin(kind) or kind in CONTAINERS for kind in kinds) and str not in kinds:
            return f"; write a list: [{value}]" if not any(_is_mapping(kind) for kind in kinds) else ""
    elif value is not None and not isinstance(value, dict | list) and str in kinds:
        return f'; quote it: "{str(value).lower() if isinstance(value, bool) else value}"'
    return ""


def _is_mapping(kind: Any) -> bool:
    return getattr(get_origin(kind) or kind, "__name__", "") in ("Mapping", "dict")
