"""Checks the sections of a recipe against the signatures of what they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any

from automodel.errors import InputError
from automodel.providers import Kind
from automodel.recipe.allowed import REMOTE_CODE
from automodel.recipe.annotations import with_names
from automodel.recipe.secrets import HIDDEN, is_secret
from automodel.recipe.signature import Parameter
from automodel.recipe.source import Node, Path_, Problems, dotted
from automodel.recipe.target import Target
from automodel.recipe.targets import Resolved, Resolver, required_but_missing
from automodel.recipe.values import checked, describe
from automodel.suggest import did_you_mean

TARGET = "_target_"
SECTIONS_OF_PLUGINS = (
    "wandb", "mlflow", "tensorboard", "checkpoint_management.export_config", "deployment",
    "model_registry",
)  # fmt: skip
"""Sections that recipes of this project have and that core does not fill: a typo in one of them gets its suggestion."""


@dataclass
class Checker:
    """Turns nodes into Targets and collects everything that is wrong."""

    resolver: Resolver
    problems: Problems

    def sections(self, root: Node) -> dict[str, Target]:
        """The target of every section that is right."""
        kinds = self.resolver.registry.section_kinds()
        targets = {}
        for path, node in self._with_inner_sections(root, list(kinds)):
            section = dotted(path)
            if section not in kinds:
                self.problems.add(node.key or node.place, path, self.unknown_section(section, list(kinds)))
            elif (target := self.section(path, node, kinds[section])) is not None:
                targets[section] = target
        return targets

    def _with_inner_sections(self, root: Node, known: list[str]) -> Iterator[tuple[Path_, Node]]:
        """The sections of the recipe; of a section that only holds sections (`deployment`) those that it holds."""
        holders = {section.partition(".")[0] for section in known if "." in section}
        for name, node in root.value.items():
            if name not in holders:
                yield (name,), node
            elif not isinstance(node.value, dict):
                inside = ", ".join(section.partition(".")[2] for section in known if section.startswith(f"{name}."))
                self.problems.add(node.place, (name,), f"must be a mapping of {inside}")
            else:
                yield from (((name, key), child) for key, child in node.value.items() if child.value is not None)

    def unknown_section(self, section: str, known: list[str]) -> str:
        """The message for a section that nothing fills."""
        if section in SECTIONS_OF_PLUGINS:
            return f"no installed plugin brings the section `{section}`; `automodel plugins` lists them"
        if section.partition(".")[0] in known and "." in section:
            return "a dot has no meaning in a key of a recipe: write a mapping, or this on the command line"
        return f"there is no section of this name{did_you_mean(section, [*known, *SECTIONS_OF_PLUGINS], most=40)}"

    def section(self, path: Path_, node: Node, kind: Kind) -> Target | None:
        """Check one section; None if its target could not be found."""
        if not isinstance(node.value, dict):
            self.problems.add(node.place, path, f"must be a mapping of keys and values, for a {kind.name}")
            return None
        default = self.resolver.registry.default(dotted(path))
        naming = kind.named_by if kind.named_by and kind.named_by in node.value else TARGET
        if naming not in node.value and default is None:
            names = self._names(kind.name)
            if not names:
                self.problems.add(node.key or node.place, path, self._nobody(kind))
            else:
                wanted = kind.named_by or TARGET
                self.problems.add(node.key or node.place, path, f"needs a `{wanted}`: {', '.join(names)}")
            return None
        return self.target(node, path, kind, default, naming)

    def _names(self, kind: str) -> list[str]:
        return [entry.provider.name for entry in self.resolver.registry.providers(kind)]

    def _nobody(self, kind: Kind) -> str:
        return f"no installed plugin brings a {kind.name} provider; `automodel plugins` lists them"

    def target(
        self, node: Node, path: Path_, kind: Kind | None, default: str | None = None, naming: str = TARGET
    ) -> Target | None:
        """Check a mapping whose key `naming` names a target, or that has a default for it."""
        named = node.value.get(naming)
        name = default if named is None else named.value
        place = named.place if named else node.key or node.place
        if not isinstance(name, str) or not name:
            if not self.problems.concern((*path, naming)):
                self.problems.add(place, (*path, naming), "must be the name of a provider or a dotted path")
            return None
        try:
            resolved = self.resolver.resolve(str(name), kind)
        except InputError as error:
            self.problems.add(place, (*path, naming), str(error))
            return None
        written = {key: child for key, child in node.value.items() if key != naming}
        kwargs = {key: self.argument(key, child, path, resolved) for key, child in written.items()}
        if missing := required_but_missing(resolved, written):
            names = ", ".join(f"`{name}`" for name in missing)
            self.problems.add(place, path, f"`{name}` needs {names}{self._docs(resolved, missing)}")
        position = node.place if not node.place.line else node.key or node.place
        positions = {key: str(child.place) for key, child in written.items()}
        return Target(
            path, str(name), resolved.location, resolved.kind, kwargs, str(position), positions, resolved.plugin
        )

    def _docs(self, resolved: Resolved, missing: list[str]) -> str:
        doc = resolved.signature.parameters[missing[0]].doc if len(missing) == 1 else ""
        return f" ({doc.rstrip('.')})" if doc else ""

    def argument(self, key: Any, node: Node, path: Path_, resolved: Resolved) -> Any:
        """Check one argument and return it converted."""
        here = (*path, key)
        signature = resolved.signature
        at_key = node.key or node.place
        if key in resolved.reserved and key in signature.parameters:
            self.problems.add(at_key, here, f"is given by AutoModel to every {resolved.kind} provider; remove it")
        elif key not in signature.parameters and (not signature.open or not isinstance(key, str)):
            settable = [name for name in signature.parameters if name not in resolved.reserved]
            self.problems.add(at_key, here, f"`{resolved.name}` takes no `{key}`{did_you_mean(str(key), settable, 40)}")
        self._no_code(key, node, here)
        parameter = signature.parameters.get(key, Parameter(str(key), Any, "", None, False))
        return self.value(node, here, parameter)

    def _no_code(self, key: Any, node: Node, path: Path_) -> None:
        """Note an argument that would run code that comes with a model."""
        safe = self.resolver.allowed.safe_values(key)
        if safe is not None and not any(node.value is value for value in safe):
            self.problems.add(
                node.place,
                path,
                f"must be {str(safe[0]).lower()}, anything else runs code that comes with the model: "
                f"add --allow-target {REMOTE_CODE} if you trust it",
            )

    def value(self, node: Node, path: Path_, parameter: Parameter) -> Any:
        """Check a value against its parameter."""
        raw = self.raw(node, path)
        if self.problems.concern(path):  # what is wrong already is not reported a second time as a wrong type
            return raw
        if isinstance(raw, Target) and not parameter.takes_target:
            self.problems.add(node.place, path, f"expected {describe(parameter.annotation)}, found a `_target_`")
        if _holds_target(raw):
            return raw
        result, wrong = checked(raw, with_names(parameter.annotation, self._names))
        for inside, text in wrong:
            at = node.at(inside) or node
            where = (*path, *inside)
            if parameter.takes_target and parameter.annotation is NoneType:
                text = text.replace("expected null", "expected null or a mapping with a `_target_`")
            self.problems.add(at.place, where, _without_secret(text, at, where))
        return result

    def raw(self, node: Node, path: Path_) -> Any:
        """The value as plain data, nested targets checked and in their place."""
        if isinstance(node.value, dict):
            if TARGET in node.value:
                return self.target(node, path, None)
            for key, child in node.value.items():
                self._no_code(key, child, (*path, key))
            return {key: self.raw(child, (*path, key)) for key, child in node.value.items()}
        if isinstance(node.value, list):
            return [self.raw(child, (*path, i)) for i, child in enumerate(node.value)]
        return node.value


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(_holds_target(child) for child in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, Target)


def _without_secret(text: str, node: Node, path: Path_) -> str:
    secret = node.secret or any(is_secret(part) for part in path if isinstance(part, str))
    return f"{text.partition(', found ')[0]}, found {HIDDEN}" if secret else text
