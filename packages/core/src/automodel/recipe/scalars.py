"""Scalars as YAML 1.2 types them, and `${VAR:default}` inside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from automodel.recipe.secrets import is_secret
from automodel.recipe.source import Node, Path_, Problems

NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
SPECIAL_FLOAT = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
VARIABLE = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_]\w*)(?::(?P<default>[^}]*))?\}|(?P<malformed>\$\{)")


class NoneWord(str):
    """`none` without quotes: a string in YAML, null where the parameter may be null."""


def typed(text: str) -> Any:
    """The value of a plain scalar in YAML 1.2's core schema: `5e-5` is a number, `yes` and `on` are strings."""
    if NULL.match(text):
        return None
    if BOOL.match(text):
        return text.lower() == "true"
    if INT.match(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if FLOAT.match(text):
        return float(text)
    if SPECIAL_FLOAT.match(text):
        return float(text.replace(".", ""))
    return NoneWord(text) if text.lower() == "none" else text


def interpolated(node: Node, env: Mapping[str, str], problems: Problems, path: Path_ = ()) -> Node:
    """The node with every `${VAR}` and `${VAR:default}` replaced; a plain scalar is typed again afterwards."""
    if isinstance(node.value, dict):
        children = {key: interpolated(child, env, problems, (*path, key)) for key, child in node.value.items()}
        return replace(node, value=children)
    if isinstance(node.value, list):
        return replace(
            node, value=[interpolated(child, env, problems, (*path, i)) for i, child in enumerate(node.value)]
        )
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    names: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        if match["malformed"]:
            problems.add(
                node.place, path, "`${` begins a variable: write ${NAME} or ${NAME:default}, or $${ for itself"
            )
            return ""
        name, default = match["name"], match["default"]
        names.append(name)
        if name not in env and default is None:
            problems.add(
                node.place,
                path,
                f"the environment variable {name} is not set and has no default (${{{name}:default}} gives one)",
            )
        return env.get(name, default or "")

    text = VARIABLE.sub(value_of, node.value)
    secret = node.secret or any(is_secret(name) for name in names)
    result = replace(node, value=text, secret=secret)
    if not node.plain:
        return result
    if text[:1] in ("[", "{"):
        return _flow(result, text)
    return replace(result, value=typed(text))


def _flow(node: Node, text: str) -> Node:
    """A list or mapping that a variable held; text that is none stays a string."""
    from automodel.recipe.parse import parse_value

    parsed = parse_value(text, node.place)
    return node if parsed is None else replace(parsed, key=node.key, secret=node.secret)
