"""The schema of a target: its parameters, types, defaults and docs, read from source without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from keyword import iskeyword
from typing import Any

from automodel.recipe.annotations import ANYTHING, optional, read_annotation
from automodel.recipe.definitions import Definition, bases, find_definition
from automodel.recipe.modules import Module, expression_path

FIELDS_OF_BASES = {"BaseModel", "NamedTuple"}
NO_FIELD = {"ClassVar", "KW_ONLY"}


@dataclass(frozen=True)
class Parameter:
    """One thing a recipe may write under a `_target_`.

    Args:
        name: the key.
        annotation: the type of its value; Any where the source does not say.
        annotation_text: the annotation as written, or an empty string.
        default: its value if it is a literal, else the source text of it; None if there is none.
        default_text: the source text of the default, or an empty string.
        required: it has no default.
        doc: from the docstring's `Args:`.
        takes_target: a nested `_target_` may stand here.
    """

    name: str
    annotation: Any
    annotation_text: str
    default: Any
    required: bool
    doc: str = ""
    default_text: str = ""
    takes_target: bool = True


@dataclass(frozen=True)
class Signature:
    """What a target takes.

    Args:
        parameters: by name, in the order of the source.
        open: it takes any further key (`**kwargs`, or a base class that cannot be read).
        doc: its docstring.
        location: where it is defined, `"package.module:attribute"`; this is what a recipe imports.
        source_module: the module whose file holds the code, another one for an inherited method.
    """

    parameters: dict[str, Parameter]
    open: bool
    doc: str
    location: str
    source_module: str


@cache
def read_signature(target: str) -> Signature:
    """Read the signature of `"package.module:attribute"` from its source.

    Raises:
        TargetNotFoundError: (a LookupError) there is no such function or class; says what is missing and what there is.
    """
    definition = find_definition(target)
    doc = ast.get_docstring(definition.node) or ""
    found = _of_class(definition) if isinstance(definition.node, ast.ClassDef) else _of_function(definition)
    parameters, is_open, docs = found or ({}, False, {})
    docs |= _args_section(doc)
    described = {name: _described(p, docs.get(name, "")) for name, p in parameters.items()}
    return Signature(described, is_open, doc, definition.location, definition.source.name)


def key(parameter: str) -> str:
    """What a recipe writes for a parameter: `async` for `async_`, since Python has that word for itself."""
    return parameter[:-1] if parameter.endswith("_") and iskeyword(parameter[:-1]) else parameter


def parameter_name(key: str) -> str:
    """The parameter that a key of a recipe is for."""
    return f"{key}_" if iskeyword(key) else key


Found = tuple[dict[str, Parameter], bool, dict[str, str]]


def _of_function(definition: Definition) -> Found:
    assert not isinstance(definition.node, ast.ClassDef)
    docs = _args_section(ast.get_docstring(definition.node) or "")
    return *_arguments(definition.node, definition.source, skip_first=definition.bound), docs


def _of_class(definition: Definition) -> Found | None:
    """From `__init__`, else the fields of a data class, else `__new__`, else those of the bases; None if none has."""
    assert isinstance(definition.node, ast.ClassDef)
    methods = {s.name: s for s in definition.node.body if isinstance(s, ast.FunctionDef)}
    fields = _is_dataclass(definition.node)
    for name in ("__init__",) if fields else ("__init__", "__new__"):
        if name in methods:
            docs = _args_section(ast.get_docstring(methods[name]) or "")
            return *_arguments(methods[name], definition.source, skip_first=True), docs
    if fields:
        return _fields(definition)
    unreadable = False
    for base in bases(definition):
        if base is None:
            unreadable = True
        elif (found := _of_class(base)) is not None:
            assert isinstance(base.node, ast.ClassDef)
            return found[0], found[1], _args_section(ast.get_docstring(base.node) or "") | found[2]
    return ({}, True, {}) if unreadable else None


def _arguments(
    node: ast.FunctionDef | ast.AsyncFunctionDef, module: Module, *, skip_first: bool
) -> tuple[dict[str, Parameter], bool]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*defaults, *arguments.defaults], strict=True))
    named = [pair for pair in pairs[1 if skip_first else 0 :] if pair[0] not in arguments.posonlyargs]
    named += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found = {key(a.arg): _parameter(key(a.arg), a.annotation, default, module) for a, default in named}
    return found, arguments.kwarg is not None


def _parameter(name: str, annotation: ast.expr | None, default: ast.expr | None, module: Module) -> Parameter:
    read = read_annotation(annotation, module)
    value: Any = None
    text = ast.unparse(default) if default is not None else ""
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            value = text
    type_ = optional(read.type) if text == "None" and read is not ANYTHING else read.type
    shown = ast.unparse(annotation).strip("'\"") if annotation is not None else ""
    return Parameter(name, type_, shown, value, default is None, "", text, read.takes_target)


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    words = [expression_path(expression)[-1:] for expression in (*decorators, *node.bases)]
    return any(word and (word[0] in FIELDS_OF_BASES or word[0] in ("dataclass", "define", "frozen")) for word in words)


def _fields(definition: Definition) -> Found:
    parameters: dict[str, Parameter] = {}
    docs: dict[str, str] = {}
    for base in reversed(list(bases(definition))):
        if base is not None and isinstance(base.node, ast.ClassDef) and _is_dataclass(base.node):
            inherited, _, inherited_docs = _fields(base)
            parameters |= inherited
            docs |= _args_section(ast.get_docstring(base.node) or "") | inherited_docs
    for name, annotation, default in _field_statements(definition.node):
        parameters[key(name)] = _parameter(key(name), annotation, default, definition.source)
    return parameters, False, docs


def _field_statements(node: ast.AST) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    assert isinstance(node, ast.ClassDef)
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation, default = statement.annotation, statement.value
        outer = annotation.value if isinstance(annotation, ast.Subscript) else annotation
        if NO_FIELD & set(expression_path(outer)[-1:]):
            continue
        if isinstance(annotation, ast.Subscript) and expression_path(outer)[-1:] == ["InitVar"]:
            annotation = annotation.slice
        if isinstance(default, ast.Call) and expression_path(default.func)[-1:] in (["field"], ["Field"]):
            options = {keyword.arg: keyword.value for keyword in default.keywords}
            init = options.get("init")
            if isinstance(init, ast.Constant) and init.value is False:
                continue
            factory = options.get("default_factory")
            made = ast.Call(factory, [], []) if factory is not None else None
            default = options.get("default") or made or next(iter(default.args), None)
        yield statement.target.id, annotation, default


def _described(parameter: Parameter, doc: str) -> Parameter:
    return Parameter(**{**vars(parameter), "doc": doc})


def _args_section(doc: str) -> dict[str, str]:
    """The parameters' docs of a Google-style docstring."""
    docs: dict[str, str] = {}
    inside, indent, name_depth, current = False, 0, 0, ""
    for line in doc.splitlines():
        depth = len(line) - len(line.lstrip())
        if re.fullmatch(r"\s*(Args|Arguments|Parameters|Attributes):\s*", line):
            inside, indent, current = True, depth, ""
        elif inside and line.strip():
            if depth <= indent:
                inside = False
            elif match := re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", line):
                if not docs or depth <= name_depth:
                    name_depth, current = depth, key(match[1])
                    docs[current] = match[2]
                else:
                    docs[current] += " " + line.strip()
            elif current:
                docs[current] += " " + line.strip()
    return {name: text.strip() for name, text in docs.items()}
