"""Discovery: which plugins are installed, which of them work, and what they bring."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from automodel import hookspecs
from automodel.providers import Kind, Provider, Registry
from automodel.suggest import did_you_mean

GROUP = "automodel"
CORE = "automodel.plugin"
BLOCKED_VARIABLE = "AUTOMODEL_BLOCK_PLUGINS"

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """An installed plugin: where it comes from, and why it is set apart if it is.

    Args:
        name: the entry point's name, by convention the name of the distribution.
        version: of the distribution.
        module: what the entry point names.
        problem: why it was not loaded, or None.
    """

    name: str
    version: str
    module: str
    problem: str | None = None

    @property
    def package(self) -> str:
        """The top-level import package."""
        return self.module.partition(".")[0]


@dataclass
class Plugins:
    """The installed plugins, their providers, and the hooks to call during a run."""

    manager: pluggy.PluginManager
    registry: Registry
    plugins: list[Plugin] = field(default_factory=list)
    commands: dict[str, tuple[Provider, Plugin]] = field(default_factory=dict)

    @property
    def broken(self) -> list[Plugin]:
        """The plugins that were set apart."""
        return [plugin for plugin in self.plugins if plugin.problem]

    def targets(self) -> set[str]:
        """The targets of all providers, `"package.module:attribute"`; recipes may name them by dotted path too."""
        return {entry.provider.target for kind in self.registry.kinds for entry in self.registry.providers(kind)}


@cache
def installed() -> Plugins:
    """Every plugin of this environment, found once per process."""
    return discover(metadata.entry_points(group=GROUP))


def discover(entry_points: Iterable[metadata.EntryPoint]) -> Plugins:
    """Load plugins and collect what they bring.

    A plugin that cannot be imported, was written for another version of the hook contract, or implements a hook wrongly
    is set apart with the reason; the others work on. Core's own plugin comes first, then the rest by name.
    `AUTOMODEL_BLOCK_PLUGINS=name,...` leaves plugins out.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    found = Plugins(manager, Registry())
    blocked = {name.strip() for name in os.environ.get(BLOCKED_VARIABLE, "").split(",")}
    first_of_each = {entry.name: entry for entry in reversed(list(entry_points))}  # one path may hold a plugin twice
    candidates = [
        (Plugin(entry.name, entry.dist.version if entry.dist else "?", entry.module), entry)
        for entry in sorted(first_of_each.values(), key=lambda entry: (entry.module != CORE, entry.name))
    ]
    modules: dict[Plugin, Any] = {}
    problems: dict[Plugin, str] = {}
    for plugin, entry in candidates:
        if plugin.name in blocked:
            problems[plugin] = f"blocked by {BLOCKED_VARIABLE}"
            continue
        with _set_apart(plugin, problems):
            module = entry.load()
            _check_version(module)
            manager.register(module, plugin.name)
            for kind in _call(module, "kinds", Kind):
                found.registry.add_kind(kind)
                caller = getattr(manager.hook, f"{kind.name}_providers", None)
                if caller is None or not caller.has_spec():  # the plugin's own implementation made a hook without spec
                    manager.add_hookspecs(_provider_hook(kind))
            modules[plugin] = module
    for plugin, module in modules.items():
        with _set_apart(plugin, problems):
            for caller in manager.get_hookcallers(module) or ():
                if not caller.has_spec():
                    raise TypeError(
                        f"it implements `{caller.name}`, which is no hook{did_you_mean(caller.name, _hooks())}"
                    )
            for kind_name in found.registry.kinds:
                for provider in _call(module, f"{kind_name}_providers", Provider):
                    found.registry.add(kind_name, provider, plugin.name)
            for command in _call(module, "cli_commands", Provider):
                if command.name in found.commands:
                    raise ValueError(
                        f"the plugin {found.commands[command.name][1].name} has a command {command.name!r}"
                    )
                found.commands[command.name] = (command, plugin)
    for plugin in problems:
        found.registry.remove(plugin.name)
        found.commands = {name: pair for name, pair in found.commands.items() if pair[1] != plugin}
        if manager.has_plugin(plugin.name):
            manager.unregister(name=plugin.name)
    found.plugins = [replace(plugin, problem=problems.get(plugin)) for plugin, _ in candidates]
    return found


def _hooks() -> list[str]:
    return [name for name, value in vars(hookspecs).items() if hasattr(value, "automodel_spec")]


def _check_version(module: ModuleType) -> None:
    version = getattr(module, "AUTOMODEL_HOOKS", hookspecs.HOOKS_VERSION)
    if version != hookspecs.HOOKS_VERSION:
        raise ImportError(
            f"it was written for version {version} of the hook contract; automodel-core "
            f"{metadata.version('automodel-core')} has version {hookspecs.HOOKS_VERSION}: install matching releases"
        )


def _call(module: ModuleType, hook: str, of: type[T]) -> list[T]:
    """Call one plugin's implementation of a hook that returns records."""
    implementation = getattr(module, hook, None)
    if implementation is None or not hasattr(implementation, "automodel_impl"):
        return []
    records = list(implementation())
    for record in records:
        if not isinstance(record, of):
            raise TypeError(f"its hook {hook} returned {record!r}, which is no {of.__name__}")
    return records


def _provider_hook(kind: Kind) -> type:
    def providers() -> Iterable[Provider]:
        return ()

    providers.__name__ = f"{kind.name}_providers"
    return type(kind.name, (), {providers.__name__: staticmethod(hookspecs.hookspec(providers))})


@contextmanager
def _set_apart(plugin: Plugin, problems: dict[Plugin, str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a third party's module raises must not break the command line
        problems[plugin] = " ".join(f"{type(error).__name__}: {error}".split())
