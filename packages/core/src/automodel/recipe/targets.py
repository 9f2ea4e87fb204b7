"""What a `_target_` names: a provider, or a function or class of an allowed package."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from automodel.errors import InputError
from automodel.plugins import Plugins
from automodel.providers import Kind, Registered
from automodel.recipe.allowed import EXPORTING, AllowList, exporter
from automodel.recipe.definitions import split
from automodel.recipe.modules import TargetNotFoundError, exists, require_module
from automodel.recipe.signature import Signature, read_signature
from automodel.suggest import did_you_mean


@dataclass(frozen=True)
class Resolved:
    """A target that exists and may be called.

    Args:
        name: as the recipe has it.
        location: what to import, `"package.module:attribute"`.
        kind: of the provider, or of the section that holds a dotted path; None for a nested dotted path.
        plugin: that brings the provider; None for a dotted path.
        signature: what it takes.
        given: parameters that AutoModel passes, so that the recipe need not.
        reserved: those of them that the recipe may not set.
    """

    name: str
    location: str
    kind: str | None
    plugin: str | None
    signature: Signature
    given: frozenset[str] = field(default_factory=frozenset)
    reserved: frozenset[str] = field(default_factory=frozenset)


class Resolver:
    """Resolves names against the installed plugins and the allow-list."""

    def __init__(self, plugins: Plugins, allowed: AllowList) -> None:
        self.plugins = plugins
        self.registry = plugins.registry
        self.allowed = allowed
        self.ever_given = frozenset(name for kind in self.registry.kinds.values() for name in kind.injected)

    def resolve(self, name: str, kind: Kind | None) -> Resolved:
        """The target called `name`: of that kind, or for None (nested in arguments) of any.

        Raises:
            InputError: there is none, it is ambiguous, or it is not allowed.
        """
        entry = self._provider(name, kind)
        if entry is not None:
            own = self.registry.kinds[entry.kind]
            signature = self._signature(entry.provider.target, f"provider `{entry.provider.name}` of {entry.plugin}")
            reserved = frozenset(own.injected)
            given = reserved if kind else self.ever_given
            return Resolved(name, entry.provider.target, entry.kind, entry.plugin, signature, given, reserved)
        if "." not in name or ":" in name:
            raise InputError(self._unknown(name, kind))
        signature = self._dotted(name, kind)
        given = frozenset(kind.injected) if kind else self.ever_given
        reserved = frozenset(kind.injected) if kind else frozenset()
        return Resolved(name, signature.location, kind.name if kind else None, None, signature, given, reserved)

    def _provider(self, name: str, kind: Kind | None) -> Registered | None:
        if kind is not None:
            return self.registry.find(kind.name, name)
        entries = self.registry.find_any(name)
        if len(entries) > 1:
            choices = " and ".join(f"the {e.kind} provider `{e.plugin}:{e.provider.name}`" for e in entries)
            raise InputError(f"`{name}` may be {choices}; write which")
        return entries[0] if entries else None

    def _signature(self, location: str, whose: str) -> Signature:
        try:
            return read_signature(location)
        except TargetNotFoundError as error:
            raise InputError(f"the {whose} cannot be used: {error}") from error

    def _dotted(self, name: str, kind: Kind | None) -> Signature:
        if not exists(name.partition(".")[0]):
            raise InputError(self._unknown(name, kind))
        try:
            module, attribute = split(name)
            signature = read_signature(f"{module}:{attribute}")
        except TargetNotFoundError as error:
            if name not in self.allowed.targets:
                self._refuse(name, error.module)
            raise InputError(f"{error}{self._broken()}") from error
        if name in self.allowed.targets:
            return signature
        defined_in, _, qualname = signature.location.partition(":")
        self._refuse(name, defined_in, signature.location)
        self._refuse(name, signature.source_module)
        if self.allowed.wants_export(defined_in) and not _exported(module, attribute, defined_in, qualname):
            library = exporter(defined_in)
            trusted = library if library == "transformers" else defined_in
            path = f"{library}.{qualname}"
            if name == path:
                write = f"`{library}` does not export it;"
            else:
                write = f"write it as `{library}` exports it (`{path}`), if it does, or"
            raise InputError(f"`{name}` is not allowed: {write} add --allow-target {trusted} if you trust this recipe")
        return signature

    def _refuse(self, name: str, module: str, location: str = "") -> None:
        """Raise if what is defined in `module` may not be called."""
        if self.allowed.admits(module):
            return
        package = module.partition(".")[0]
        trusted = package if package not in ("torch", "torchdata", "transformers", "automodel") else module
        add = f"add --allow-target {trusted} if you trust this recipe"
        plugin = next((p.name for p in self.plugins.plugins if p.package == package and not p.problem), None)
        if plugin is None:
            raise InputError(f"`{name}` is defined in `{module}`, which is not allowed: {add}")
        entries = [entry for kind in self.registry.kinds for entry in self.registry.providers(kind)]
        meant = [entry.provider.name for entry in entries if entry.provider.target == location]
        write = f"write `{meant[0]}`" if meant else f"`automodel plugins show {plugin}` lists its providers"
        raise InputError(
            f"`{name}` is not allowed: of the plugin {plugin}, a recipe names providers only; {write}, or {add}"
        )

    def _unknown(self, name: str, kind: Kind | None) -> str:
        wanted = f"{kind.name} provider" if kind else "provider"
        others = {entry.kind for entry in self.registry.find_any(name)}
        if kind and others:
            return f"`{name}` is a {' and a '.join(sorted(others))} provider, this needs a {wanted}"
        kinds = [kind.name] if kind else list(self.registry.kinds)
        entries = [entry for of_kind in kinds for entry in self.registry.providers(of_kind)]
        if "." in name or not entries:
            spellings = [alias for entry in entries for alias in entry.provider.aliases]
            near = get_close_matches(name, spellings, n=1, cutoff=0.95)  # these paths differ little from each other
            hint = f"did you mean `{near[0]}`?" if near else "`automodel plugins` lists what there is"
            return f"no installed plugin brings a {wanted} called `{name}`; {hint}{self._broken()}"
        suggestion = did_you_mean(name, [entry.provider.name for entry in entries])
        return f"no {wanted} is called `{name}`{suggestion}{self._broken()}"

    def _broken(self) -> str:
        plugins = [f"{plugin.name} ({plugin.problem})" for plugin in self.plugins.broken]
        return f"; plugins that could not be loaded: {', '.join(plugins)}" if plugins else ""


def _exported(module: str, attribute: str, defined_in: str, qualname: str) -> bool:
    """Whether `module.attribute` is a library's public name of what is defined there, for users of the library."""
    names = attribute.split(".")
    if module not in EXPORTING or any(name.startswith("_") for name in names):
        return False
    if len(names) != len(qualname.split(".")):  # reached through another module that is imported there
        return False
    library = require_module(module)
    if names[0] in library.bindings:
        return True
    from_star = any(f"{defined_in}.".startswith(f"{star}.") for star in library.stars)
    return from_star and names[0] in require_module(defined_in).declared()


def required_but_missing(resolved: Resolved, written: Any) -> list[str]:
    """The parameters without default that neither the recipe nor AutoModel gives."""
    return [
        name
        for name, parameter in resolved.signature.parameters.items()
        if parameter.required and name not in written and name not in resolved.given
    ]
