"""A checked recipe, and how files, environment and command line become one."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from automodel.plugins import Plugins, installed
from automodel.recipe.allowed import AllowList
from automodel.recipe.check import Checker
from automodel.recipe.overrides import apply, parse_overrides
from automodel.recipe.parse import parse_file
from automodel.recipe.scalars import interpolated
from automodel.recipe.secrets import HIDDEN, is_secret
from automodel.recipe.source import Node, Place, Problems, merged
from automodel.recipe.target import Target
from automodel.recipe.targets import Resolver


@dataclass
class Recipe:
    """A recipe without mistakes.

    Args:
        files: as the user named them.
        root: the merged, interpolated nodes.
        targets: of the sections that are in the recipe, in their order.
        resolver: names to targets, for the sections that are not.
    """

    files: list[str]
    root: Node
    targets: dict[str, Target]
    resolver: Resolver = field(repr=False)

    def has(self, section: str) -> bool:
        """Whether the recipe has the section (and it is not null)."""
        return section in self.targets

    def target(self, section: str) -> Target | None:
        """The section's target; for a section that is absent the kind's default without arguments, or None."""
        if section in self.targets:
            return self.targets[section]
        kind = self.resolver.registry.section_kinds().get(section)
        if kind is None or kind.default is None or section not in kind.sections:
            return None
        resolved = self.resolver.resolve(kind.default, kind)
        return Target(tuple(section.split(".")), kind.default, resolved.location, kind.name, plugin=resolved.plugin)

    def sections_of(self, kind: str) -> list[Target]:
        """The targets of all sections of a kind that are in the recipe, in its order."""
        kinds = self.resolver.registry.section_kinds()
        return [target for section, target in self.targets.items() if kinds[section].name == kind]

    def require(self, *sections: str) -> None:
        """Raise one RecipeError that names every one of `sections` that is absent."""
        problems = Problems(self.files)
        _require(sections, set(self.targets), self.resolver, problems)
        problems.raise_any()

    def where(self, *path: str | int) -> str:
        """`file:line:column` of the value at a path, or `command line`; of the nearest part that exists."""
        for end in range(len(path), -1, -1):
            if (node := self.root.at(path[:end])) is not None:
                return str(node.place)
        raise AssertionError("the root is at ()")

    def resolved(self) -> dict[str, Any]:
        """Plain data after merging, environment and overrides, secrets replaced by `***`."""
        data = _redacted(self.root, "")
        assert isinstance(data, dict)
        return data

    def dump(self) -> str:
        """`resolved()` as YAML."""
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        # false keeps the recipe's order; ruamel types the attribute by its default alone
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.width = 4096
        yaml.dump(self.resolved(), stream)
        return stream.getvalue()

    def digest(self) -> str:
        """SHA-256 (hex) of `resolved()` in a canonical form: equal for equal recipes, whatever their layout."""
        canonical = json.dumps(self.resolved(), sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_recipe(
    paths: Sequence[str | Path],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    plugins: Plugins | None = None,
    allow_targets: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    needs: Sequence[str] = (),
) -> Recipe:
    """Read, merge and check recipe files. Nothing that they name is imported.

    Args:
        paths: YAML files; later ones win.
        overrides: words of the command line (`--section.key value`, `section.key=value`), or a mapping
            (`{"section.key": value}`, or nested).
        plugins: the plugins to know; those of this environment by default.
        allow_targets: packages whose functions may be named by dotted path, besides the usual ones.
        env: the environment for `${VAR}`; this process's by default.
        needs: sections without which the recipe is incomplete.

    Raises:
        RecipeError: lists every problem with its position.
    """
    plugins = plugins if plugins is not None else installed()
    files = [str(path) for path in paths]
    problems = Problems(files)
    roots = [root for path in paths if (root := parse_file(path, problems)) is not None]
    if len(roots) < len(files):
        problems.raise_any()
    root = Node({}, Place(", ".join(files) or "overrides"))
    for index, later in enumerate(roots):
        root = merged(root, later) if index else later
    for path, node in parse_overrides(overrides, problems):
        root = apply(root, path, node, problems)
    root = interpolated(root, os.environ if env is None else env, problems)
    root = replace(root, value={key: node for key, node in root.value.items() if node.value is not None})
    resolver = Resolver(plugins, AllowList(plugins.targets(), allow_targets))
    targets = Checker(resolver, problems).sections(root)
    _require(needs, {*root.value, *_inner_sections(root)}, resolver, problems)
    problems.raise_any()
    return Recipe(files, root, targets, resolver)


def _inner_sections(root: Node) -> Iterator[str]:
    """What mappings in sections would be called as sections."""
    for name, node in root.value.items():
        if isinstance(node.value, dict):
            yield from (f"{name}.{key}" for key, child in node.value.items() if child.value is not None)


def _require(sections: Sequence[str], present: set[str], resolver: Resolver, problems: Problems) -> None:
    place = Place(problems.files[-1] if problems.files else "overrides")
    kinds = resolver.registry.section_kinds()
    for section in sections:
        if section in present:
            continue
        kind = kinds.get(section)
        names = [entry.provider.name for entry in resolver.registry.providers(kind.name)] if kind else []
        key = (kind.named_by if kind else None) or "_target_"
        written = section.replace(".", ": {", 1) + (": {...}}" if "." in section else ":")
        choices = f"write `{written}` with a `{key}`: {', '.join(names)}" if names else "no installed plugin brings one"
        problems.add(place, (), f"the section `{section}` is missing; {choices}")


def _redacted(node: Node, key: str) -> Any:
    if is_secret(key) and node.value is not None and not isinstance(node.value, bool):
        return HIDDEN
    if node.secret:
        return HIDDEN
    if isinstance(node.value, dict):
        return {name: _redacted(child, str(name)) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [_redacted(child, "") for child in node.value]
    return node.plain_data()
