"""Finds where a function or class is defined by reading source files; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from automodel.suggest import did_you_mean

Callable_: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef"


class TargetNotFoundError(LookupError):
    """A target has no definition that can be read.

    Args:
        module: the module in which the search ended.
    """

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module


@dataclass(frozen=True)
class Imported:
    """`from module import name`, or `import module` if `name` is None."""

    module: str
    name: str | None = None


Binding: TypeAlias = "Callable_ | Imported | ast.expr"


@dataclass(frozen=True, eq=False)
class Module:
    """A source file, and what its names are bound to at the top level.

    Args:
        name: dotted.
        directories: where its submodules lie; empty for a plain module.
        bindings: definitions go before imports, imports before assignments, for a module binds a name in several
            branches (`try: from fast import f` / `except ImportError: f = None`).
        stars: the modules it imports everything from.
    """

    name: str
    directories: tuple[Path, ...]
    bindings: dict[str, Binding] = field(default_factory=dict)
    stars: tuple[str, ...] = ()

    def has_submodule(self, name: str) -> bool:
        """Whether there is a file or package of that name below this package."""
        return any(_module_file(directory / name) for directory in self.directories)

    def submodules(self) -> list[str]:
        """The names of the modules below this package."""
        entries = (entry for directory in self.directories for entry in directory.glob("*"))
        return [entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()]


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


def exists(top: str) -> bool:
    """Whether a top-level module is installed, in Python source or not."""
    try:
        return find_spec(top) is not None
    except (ImportError, ValueError):
        return False


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


def expression_path(expression: ast.expr) -> list[str]:
    """`["a", "b", "c"]` of the expression `a.b.c`; empty for any other expression."""
    if isinstance(expression, ast.Name):
        return [expression.id]
    if isinstance(expression, ast.Attribute):
        head = expression_path(expression.value)
        return [*head, expression.attr] if head else []
    return []


@cache
def load_module(name: str) -> Module | None:
    """Read a module's source without importing it; None where there is none."""
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)  # the top package only: for a submodule, Python would import its parents
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    directories = tuple(Path(location) for location in spec.submodule_search_locations or ())
    file = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for part in rest:
        found = next((found for d in directories if (found := _module_file(d / part))), None)
        if found is None:
            return None
        file = found / "__init__.py" if found.is_dir() else found
        directories = (found,) if found.is_dir() else ()
    if not directories and file is None:
        return None
    tree = ast.parse(file.read_bytes()) if file and file.is_file() else ast.Module([], [])
    return _read(name, directories, tree)


def require_module(name: str) -> Module:
    """The module, or a TargetNotFoundError if there is no source of it."""
    try:
        module = load_module(name)
    except (SyntaxError, ValueError, OSError) as error:
        raise TargetNotFoundError(f"the source of `{name}` cannot be read: {error}", name) from error
    if module is None:
        raise TargetNotFoundError(f"there is no Python source of a module `{name}`", name)
    return module


def _module_file(path: Path) -> Path | None:
    if path.is_dir() and not path.name.startswith(("_pycache", ".")):
        return path if (path / "__init__.py").is_file() or any(path.glob("*.py")) else None
    file = path.parent / f"{path.name}.py"
    return file if file.is_file() else None


def _read(name: str, directories: tuple[Path, ...], tree: ast.Module) -> Module:
    definitions: dict[str, Binding] = {}
    imports: dict[str, Binding] = {}
    assigned: dict[str, Binding] = {}
    stars: list[str] = []
    package = name if directories else name.rpartition(".")[0]
    for statement in _statements(tree.body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not any(expression_path(d)[-1:] == ["overload"] for d in statement.decorator_list):
                definitions[statement.name] = statement
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                imports.setdefault(alias.asname or module, Imported(module))
        elif isinstance(statement, ast.ImportFrom):
            origin = _absolute(package, statement.level, statement.module)
            for alias in statement.names:
                if alias.name == "*":
                    stars.append(origin)
                else:
                    imports.setdefault(alias.asname or alias.name, Imported(origin, alias.name))
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                if isinstance(target, ast.Name):
                    assigned[target.id] = statement.value
    return Module(name, directories, {**assigned, **imports, **definitions}, tuple(stars))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            inner = [*statement.body]
            if isinstance(statement, ast.If | ast.Try):
                inner += statement.orelse
            if isinstance(statement, ast.Try):
                inner += [s for handler in statement.handlers for s in handler.body]
            yield from _statements(inner)


def _absolute(package: str, level: int, module: str | None) -> str:
    if not level:
        return module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])


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
    known = [word for word in (*module.bindings, *module.submodules()) if not word.startswith("_")]
    raise TargetNotFoundError(f"`{module_name}` has no `{name}`{did_you_mean(name, known)}", module_name)


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
    for statement in reversed(list(_statements(owner.node.body))):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and statement.name == name:
            return statement, owner.source
    for base in bases(owner):
        if base is not None and (found := _method(base, name)) is not None:
            return found
    return None
