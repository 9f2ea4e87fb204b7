"""Source files of modules and what their names are bound to; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

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

    def declared(self) -> set[str]:
        """The names that its `__all__` lists."""
        names = self.bindings.get("__all__")
        elements = names.elts if isinstance(names, ast.List | ast.Tuple) else []
        return {e.value for e in elements if isinstance(e, ast.Constant) and isinstance(e.value, str)}

    def submodules(self) -> list[str]:
        """The names of the modules below this package."""
        entries = (entry for directory in self.directories for entry in directory.glob("*"))
        return [entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()]


def exists(top: str) -> bool:
    """Whether a top-level module is installed, in Python source or not."""
    try:
        return find_spec(top) is not None
    except (ImportError, ValueError):
        return False


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
    for statement in statements(tree.body):
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


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block and of the `if`, `try` and `with` blocks in it, in the order of the source."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            inner = [*statement.body]
            if isinstance(statement, ast.If | ast.Try):
                inner += statement.orelse
            if isinstance(statement, ast.Try):
                inner += [s for handler in statement.handlers for s in handler.body]
            yield from statements(inner)


def _absolute(package: str, level: int, module: str | None) -> str:
    if not level:
        return module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])
