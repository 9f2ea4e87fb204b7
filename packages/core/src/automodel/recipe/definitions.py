"""Finds where a function or class is defined by reading source files; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from automodel.recipe.modules import (
    Callable_,
    Imported,
    Module,
    TargetNotFoundError,
    exists,
    expression_path,
    load_module,
    require_module,
    statements,
)
from automodel.suggest import did_you_mean


@dataclass(frozen=True, eq=False)
class Definition:
    """A function or class, and the names under which it can be imported.

    Args:
        module: where the function, or the class that a method was asked of, is defined.
        qualname: its name there: `"AutoModel.from_pretrained"`.
        node: the definition.
        source: the file in which `node` stands, for a method that is inherited that of the base class.
        bound: it is a method whose first parameter is given by Python.
    """

    module: str
    qualname: str
    node: Callable_
    source: Module
    bound: bool = False

    @property
    def location(self) -> str:
        """`"package.module:attribute"`."""
        return f"{self.module}:{self.qualname}"


def split(dotted: str) -> tuple[str, str]:
    """Divide `pkg.mod.Class.method` into the longest module that exists as a file, and the rest.

    Raises:
        TargetNotFoundError: the first part is no module, or nothing is left for the attribute.
    """
    parts = dotted.split(".")
    if not all(part.isidentifier() for part in parts):
        raise TargetNotFoundError(f"`{dotted}` is no dotted path", parts[0])
    module = load_module(parts[0])
    if module is None and exists(parts[0]):
        raise TargetNotFoundError(f"there is no Python source of a module `{parts[0]}`", parts[0])
    if module is None:
        raise TargetNotFoundError(f"there is no module `{parts[0]}` in this environment", parts[0])
    for count, part in enumerate(parts[1:], start=1):
        if not module.has_submodule(part):
            return module.name, ".".join(parts[count:])
        module = require_module(f"{module.name}.{part}")
    raise TargetNotFoundError(f"`{dotted}` is a module, not a function or class", dotted)


def find_definition(target: str) -> Definition:
    """Find `"package.module:attribute"`, following imports, re-exports and aliases.

    Raises:
        TargetNotFoundError: no such module or attribute, or it is no function or class in Python source.
    """
    module, _, attribute = target.partition(":")
    found: Definition | str = module
    for name in attribute.split("."):
        found = _lookup(found, name, set()) if isinstance(found, str) else _member(found, name)
    if isinstance(found, str):
        raise TargetNotFoundError(f"`{found}` is a module, not a function or class", found)
    return found


def bases(definition: Definition) -> Iterator[Definition | None]:
    """The base classes that are classes in Python source; None for one that is not (compiled, made by a call)."""
    if not isinstance(definition.node, ast.ClassDef):
        return
    for base in definition.node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        words = expression_path(expression)
        if words and words[-1] in ("object", "Generic", "Protocol", "ABC", "Enum", "NamedTuple", "TypedDict"):
            continue
        try:
            found = _follow(definition.source, words, set()) if words else None
        except TargetNotFoundError:
            found = None
        yield found if isinstance(found, Definition) and found.node is not definition.node else None


def _lookup(module_name: str, name: str, seen: set[tuple[str, str]]) -> Definition | str:
    """What `name` is in a module: a definition, or the name of a module."""
    module = require_module(module_name)
    binding = None if (module_name, name) in seen else module.bindings.get(name)
    seen.add((module_name, name))
    if isinstance(binding, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return Definition(module_name, name, binding, module)
    if isinstance(binding, Imported):
        return binding.module if binding.name is None else _lookup(binding.module, binding.name, seen)
    if isinstance(binding, ast.expr) and (words := expression_path(binding)):
        return _follow(module, words, seen)
    if module.has_submodule(name):
        return f"{module_name}.{name}"
    if binding is None and not name.startswith("_"):
        for star in module.stars:
            try:
                return _lookup(star, name, seen)
            except TargetNotFoundError:
                continue
    if binding is not None:
        raise TargetNotFoundError(f"`{module_name}.{name}` is no function or class that can be read", module_name)
    raise TargetNotFoundError(f"`{module_name}` has no `{name}`{did_you_mean(name, _public(module))}", module_name)


def _public(module: Module) -> list[str]:
    """The names that a module offers, for suggestions; a name goes before a submodule that differs only in case."""
    sources = [module, *(source for star in module.stars if (source := load_module(star)) is not None)]
    names = [name for source in sources for name in source.bindings]
    lowered = {name.lower() for name in names}
    names += [name for name in module.submodules() if name.lower() not in lowered]
    return [name for name in names if not name.startswith("_")]


def _follow(module: Module, words: list[str], seen: set[tuple[str, str]]) -> Definition | str:
    found = _lookup(module.name, words[0], seen)
    for word in words[1:]:
        found = _lookup(found, word, seen) if isinstance(found, str) else _member(found, word)
    return found


def _member(owner: Definition, name: str) -> Definition:
    """A method or nested class of a class, its own or inherited."""
    if (found := _method(owner, name)) is None:
        known = [s.name for s in getattr(owner.node, "body", ()) if isinstance(s, ast.FunctionDef | ast.ClassDef)]
        suggestion = did_you_mean(name, [word for word in known if not word.startswith("_")])
        raise TargetNotFoundError(f"`{owner.qualname}` has no `{name}`{suggestion}", owner.module)
    node, source = found
    decorators = {expression_path(d)[-1] for d in getattr(node, "decorator_list", ()) if expression_path(d)}
    bound = not isinstance(node, ast.ClassDef) and "staticmethod" not in decorators
    if bound and "classmethod" not in decorators:
        raise TargetNotFoundError(f"`{owner.qualname}.{name}` is a method of an object, not of the class", owner.module)
    return Definition(owner.module, f"{owner.qualname}.{name}", node, source, bound)


def _method(owner: Definition, name: str) -> tuple[Callable_, Module] | None:
    if not isinstance(owner.node, ast.ClassDef):
        return None
    for statement in reversed(list(statements(owner.node.body))):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and statement.name == name:
            return statement, owner.source
    for base in bases(owner):
        if base is not None and (found := _method(base, name)) is not None:
            return found
    return None
