"""Turns an annotation in source code into a type that a recipe's value can be checked against."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from automodel.providers import ProviderOf
from automodel.recipe.modules import Imported, Module, expression_path

TRUSTED_MODULES = {
    "typing",
    "typing_extensions",
    "collections",
    "collections.abc",
    "pathlib",
    "os",
    "builtins",
    "numbers",
}
KNOWN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "bytes": bytes, "None": None, "object": Any, "Any": Any,
    "list": list, "List": list, "dict": dict, "Dict": dict, "tuple": tuple, "Tuple": tuple, "set": set, "Set": set,
    "frozenset": frozenset, "FrozenSet": frozenset, "Sequence": Sequence, "MutableSequence": Sequence,
    "Iterable": Sequence, "Collection": Sequence, "Mapping": Mapping, "MutableMapping": Mapping,
    "Path": Path, "PurePath": Path,
}  # fmt: skip
SCALARS = (int, float, str, bool, NoneType, Path)
MOST_ALIASES = 20


@dataclass(frozen=True)
class Annotation:
    """A type for pydantic.

    Args:
        type: what a recipe's value must be; Any where nothing is known.
        takes_target: a nested `_target_` may stand here: the annotation names more than plain scalars.
    """

    type: Any
    takes_target: bool


ANYTHING = Annotation(Any, True)


class _Unknown:
    """Part of an annotation that only its module understands."""


UNKNOWN = _Unknown()


def read_annotation(expression: ast.expr | None, module: Module) -> Annotation:
    """Evaluate an annotation without running code.

    Names of unknown classes are left out of a union, since no YAML value is of such a class; what is wholly unknown
    is Any.
    """
    if expression is None:
        return ANYTHING
    reader = _Reader(module)
    result = reader.read(expression)
    if isinstance(result, _Unknown) or result is Any:
        return ANYTHING
    return Annotation(result, reader.dropped or not is_scalar(result))


def is_scalar(annotation: Any) -> bool:
    """Whether only int, float, str, bool, null, a path or a literal fits."""
    return all(member in SCALARS or get_origin(member) is Literal for member in members(annotation))


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (NoneType,) if annotation is None else (annotation,)


def optional(annotation: Any) -> Any:
    """The annotation, or null."""
    return annotation if annotation is Any or NoneType in members(annotation) else annotation | None


class _Reader:
    def __init__(self, module: Module) -> None:
        self.module = module
        self.dropped = False
        self.depth = 0

    def read(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                return self.quoted(node.value)
            return None if node.value is None else UNKNOWN
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.union([node.left, node.right])
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        if isinstance(node, ast.Name | ast.Attribute):
            return self.name(node)
        return UNKNOWN

    def quoted(self, text: str) -> Any:
        try:
            return self.read(ast.parse(text.strip(), mode="eval").body)
        except SyntaxError:
            return UNKNOWN

    def name(self, node: ast.expr) -> Any:
        words = expression_path(node)
        if not words:
            return UNKNOWN
        if words in (["os", "PathLike"], ["PathLike"]):
            return str | Path
        binding = self.module.bindings.get(words[0])
        if binding is None:
            return KNOWN.get(words[0], UNKNOWN) if len(words) == 1 else UNKNOWN
        if isinstance(binding, Imported):
            return KNOWN.get(words[-1], UNKNOWN) if binding.module in TRUSTED_MODULES else UNKNOWN
        if isinstance(binding, ast.expr) and len(words) == 1 and self.depth < MOST_ALIASES:
            self.depth += 1
            return self.read(binding)
        return UNKNOWN

    def special(self, node: ast.expr) -> str:
        """`Optional`, `Literal`, ... under whatever name the module imported it."""
        words = expression_path(node)
        binding = self.module.bindings.get(words[0]) if words else None
        if not isinstance(binding, Imported) or binding.module not in TRUSTED_MODULES:
            return ""
        return words[-1] if len(words) > 1 else binding.name or ""

    def provider_of(self, node: ast.expr) -> str | None:
        """The kind in `ProviderOf("kind")`."""
        if not isinstance(node, ast.Call) or expression_path(node.func)[-1:] != [ProviderOf.__name__]:
            return None
        kind: str = ast.literal_eval(node.args[0])
        return kind

    def union(self, nodes: Sequence[ast.expr]) -> Any:
        known = []
        for node in nodes:
            result = self.read(node)
            if isinstance(result, _Unknown):
                self.dropped = True
            else:
                known.append(result)
        if not known:
            return UNKNOWN
        if any(member is Any for member in known):
            return Any
        return Union[tuple(known)]  # noqa: UP007  (a union of a tuple of unknown length)

    def subscript(self, node: ast.Subscript) -> Any:
        inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        special = self.special(node.value)
        if special == "Optional":
            result = self.read(node.slice)
            if isinstance(result, _Unknown):
                self.dropped = True
                return NoneType
            return Any if result is Any else Union[result, None]  # noqa: UP007  (a value known at run time only)
        if special == "Union":
            return self.union(inner)
        if special == "Literal":
            try:
                return Literal[tuple(ast.literal_eval(item) for item in inner)]
            except ValueError:
                return UNKNOWN
        if special == "Annotated" and (kind := self.provider_of(inner[1])) is not None:
            return Annotated[str, ProviderOf(kind)]
        if special in ("Annotated", "Final", "ClassVar", "Required", "NotRequired"):
            return self.read(inner[0])
        origin = self.read(node.value)
        if origin not in (list, dict, tuple, set, frozenset, Sequence, Mapping):
            return str | Path if origin == str | Path else UNKNOWN
        ellipsis = [isinstance(item, ast.Constant) and item.value is Ellipsis for item in inner]
        arguments = [... if dots else self.element(item) for dots, item in zip(ellipsis, inner, strict=True)]
        return origin[tuple(arguments)] if len(arguments) > 1 else origin[arguments[0]]

    def element(self, node: ast.expr) -> Any:
        result = self.read(node)
        return Any if isinstance(result, _Unknown) else result


def with_names(annotation: Any, names_of: Callable[[str], Sequence[str]]) -> Any:
    """The annotation with the names that a kind's providers have in place of `ProviderOf(kind)`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated and isinstance(arguments[1], ProviderOf):
        return Literal[tuple(names_of(arguments[1].kind))]
    if origin in (None, Literal):
        return annotation
    inner = tuple(argument if argument is ... else with_names(argument, names_of) for argument in arguments)
    return Union[inner] if origin in (Union, UnionType) else origin[inner]  # noqa: UP007  (known at run time only)


def walk(annotation: Any, path: Sequence[str | int]) -> Any:
    """The annotation of an element: `int` for `(2,)` in `list[int]`; Any where that is not known."""
    for part in path:
        annotation = next(_elements(annotation, part), Any)
    return annotation


def _elements(annotation: Any, part: str | int) -> Iterator[Any]:
    for member in members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin in (dict, Mapping) or (origin is not None and origin.__name__ == "Mapping"):
            yield arguments[1]
        elif origin is tuple and ... not in arguments:
            yield arguments[part] if isinstance(part, int) and part < len(arguments) else Any
        elif origin is not None and origin is not Literal and isinstance(part, int):
            yield arguments[0]
