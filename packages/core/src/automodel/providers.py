"""Providers: what plugins offer, found by kind and name, imported only when a recipe uses it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from automodel.errors import InputError
from automodel.suggest import did_you_mean


@dataclass(frozen=True)
class Provider:
    """One implementation that recipes can name in `_target_`.

    Args:
        name: what recipes write; unique within its kind.
        target: `"package.module:attribute"`, a callable or a dotted attribute of one (`"pkg.mod:Class.method"`).
            It is a string so that discovery imports nothing.
        aliases: further spellings, such as the dotted paths of another framework's recipes.
        summary: one line for `automodel plugins`.
    """

    name: str
    target: str
    aliases: tuple[str, ...] = ()
    summary: str = ""

    def __post_init__(self) -> None:
        module, _, attribute = self.target.partition(":")
        if not module or not attribute:
            raise ValueError(f"provider {self.name!r}: target {self.target!r} must read 'package.module:attribute'")

    def load(self) -> Any:
        """Import and return the target."""
        module, _, attribute = self.target.partition(":")
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
        return value


@dataclass(frozen=True)
class Kind:
    """A kind of provider: which recipe sections it fills and what core passes to it besides the recipe's arguments.

    Its providers come from the hook `<name>_providers`.

    Args:
        name: the kind, in the singular and snake case: `"optimizer"`.
        sections: the recipe's sections that hold one provider of this kind each. `"deployment.serving_config"` is the
            mapping `serving_config` in a section `deployment`, which has nothing else but such mappings. Empty for
            kinds that only occur nested in another section (a collate function inside a data loader).
        default: the provider of a section without `_target_`.
        injected: parameters that core passes by name if the provider has them; a recipe may not set them.
        named_sections: every provider's name is itself a section (`wandb:`, `mlflow:`).
        named_by: a key of its sections that names the provider as `_target_` does (`framework: vllm`).
    """

    name: str
    sections: tuple[str, ...] = ()
    default: str | None = None
    injected: tuple[str, ...] = ()
    named_sections: bool = False
    named_by: str | None = None


@dataclass(frozen=True)
class ProviderOf:
    """Marks a parameter that takes a provider's name: `formats: list[Annotated[str, ProviderOf("exporter")]]`."""

    kind: str


@dataclass(frozen=True)
class Registered:
    """A provider together with its kind and the plugin that brought it."""

    kind: str
    provider: Provider
    plugin: str


@dataclass
class Registry:
    """All kinds and providers of the plugins that loaded."""

    kinds: dict[str, Kind] = field(default_factory=dict)
    _entries: dict[str, list[Registered]] = field(default_factory=dict)
    _by_key: dict[tuple[str, str], list[Registered]] = field(default_factory=dict)

    def add_kind(self, kind: Kind) -> None:
        """Register a kind; a second one with the same name or section is a `ValueError`."""
        if kind.name in self.kinds:
            raise ValueError(f"the kind {kind.name!r} exists already")
        taken = {s: k.name for k in self.kinds.values() for s in k.sections}
        for section in kind.sections:
            if section in taken:
                raise ValueError(f"the section {section!r} belongs to the kind {taken[section]!r} already")
        self.kinds[kind.name] = kind

    def add(self, kind: str, provider: Provider, plugin: str) -> None:
        """Register a provider under its name, its aliases and `plugin:name`.

        Raises:
            ValueError: the same plugin brings two providers of this kind with one name or alias.
        """
        entry = Registered(kind, provider, plugin)
        for key in (provider.name, *provider.aliases, f"{plugin}:{provider.name}"):
            entries = self._by_key.setdefault((kind, key), [])
            if any(other.plugin == plugin for other in entries):
                raise ValueError(f"it brings two {kind} providers called {key!r}")
            entries.append(entry)
        self._entries.setdefault(kind, []).append(entry)

    def remove(self, plugin: str) -> None:
        """Forget every provider of a plugin."""
        for entries in (*self._entries.values(), *self._by_key.values()):
            entries[:] = [entry for entry in entries if entry.plugin != plugin]

    def providers(self, kind: str) -> list[Registered]:
        """Every provider of a kind, in the order of registration."""
        return list(self._entries.get(kind, ()))

    def find(self, kind: str, name: str) -> Registered | None:
        """The provider of that name, alias or `plugin:name`, or None.

        Raises:
            InputError: several plugins bring one of that name; names them.
        """
        entries = self._by_key.get((kind, name), [])
        if len(entries) > 1:
            plugins = " and ".join(entry.plugin for entry in entries)
            choices = " or ".join(f"`{entry.plugin}:{entry.provider.name}`" for entry in entries)
            raise InputError(f"the plugins {plugins} both bring a {kind} provider called `{name}`; write {choices}")
        return entries[0] if entries else None

    def find_any(self, name: str) -> list[Registered]:
        """Every provider, of whatever kind, known by that name, alias or `plugin:name`."""
        return [entry for (_, key), entries in self._by_key.items() if key == name for entry in entries]

    def load(self, kind: str, name: str) -> Any:
        """Import the provider's target.

        Raises:
            InputError: no plugin that is installed brings it; says which ones there are.
        """
        entry = self.find(kind, name)
        if entry is None:
            raise InputError(self.unknown(kind, name))
        return entry.provider.load()

    def unknown(self, kind: str, name: str) -> str:
        """The message for a provider that no installed plugin brings."""
        known = [entry.provider.name for entry in self.providers(kind)]
        if not known:
            return (
                f"no installed plugin brings a {kind} provider, so there is no `{name}`; `automodel plugins` lists them"
            )
        return f"no {kind} provider is called `{name}`{did_you_mean(name, known)}"

    def section_kinds(self) -> dict[str, Kind]:
        """Every recipe section and the kind that fills it."""
        sections = {section: kind for kind in self.kinds.values() for section in kind.sections}
        for kind in self.kinds.values():
            if kind.named_sections:
                sections |= {entry.provider.name: kind for entry in self.providers(kind.name)}
        return sections

    def default(self, section: str) -> str | None:
        """The provider that fills a section which names none."""
        kind = self.section_kinds()[section]
        return section if kind.named_sections and section not in kind.sections else kind.default
