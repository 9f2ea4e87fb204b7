"""YAML text to nodes that know their places."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from automodel.recipe.scalars import typed
from automodel.recipe.source import Node, Path_, Place, Problems

TAG = re.compile(r"(?:&\S+\s+)?(!\S*)")
MOST_NODES = 100_000


def parse_file(path: str | Path, problems: Problems) -> Node | None:
    """Read one recipe file; None, and a problem, if it is none."""
    source = str(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        problems.add(Place(source), (), f"cannot be read: {error.strerror or error}")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lines = data[: error.start].split(b"\n")
        line = data.split(b"\n")[len(lines) - 1].decode("utf-8", "replace").rstrip("\r")
        column = len(lines[-1].decode("utf-8", "replace")) + 1
        place = Place(source, len(lines), column, line)
        problems.add(place, (), f"is not UTF-8: the byte 0x{data[error.start]:02x}")
        return None
    return _Parser(source, text, problems).document()


def parse_value(text: str, place: Place) -> Node | None:
    """A value from the command line or from a variable, all of it at `place`; None if it is no YAML."""
    problems = Problems([])
    node = _Parser(place.source, text, problems, fixed=place).value()
    return None if problems.found else node


@dataclass
class _Parser:
    source: str
    text: str
    problems: Problems
    fixed: Place | None = None
    num_nodes: int = 0
    open_nodes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = self.text.split("\n")

    def place(self, mark: Any) -> Place:
        if self.fixed:
            return self.fixed
        row = min(mark.line, len(self.lines) - 1)
        line = self.lines[row].rstrip("\r")
        column = mark.column if row == mark.line else len(line)
        return Place(self.source, row + 1, column + 1, line)

    def compose(self) -> Any:
        try:
            return YAML(typ="safe", pure=True).compose(self.text)
        except MarkedYAMLError as error:
            ends_early = re.search("end of stream|<stream end>", str(error.problem)) and error.context_mark
            mark = error.context_mark if ends_early else error.problem_mark or error.context_mark
            place = self.place(mark) if mark else Place(self.source)
            self.problems.add(place, (), f"is not YAML: {_reason(error, place)}")
        except YAMLError as error:
            self.problems.add(self.unreadable(error), (), f"is not YAML: {_one_line(error)}")
        return None

    def unreadable(self, error: Any) -> Place:
        """The place of a character that YAML does not allow."""
        position = getattr(error, "position", None)  # only ruamel's ReaderError has one
        if not isinstance(position, int):
            return Place(self.source)
        before = self.text[:position].split("\n")
        return Place(self.source, len(before), len(before[-1]) + 1, self.lines[len(before) - 1])

    def value(self) -> Node | None:
        root = self.compose()
        return self.build(root, ()) if root is not None else None

    def document(self) -> Node | None:
        root = self.compose()
        if self.problems.found and any(p.place.source == self.source for p in self.problems):
            return None
        if root is None or (isinstance(root, ScalarNode) and not root.style and typed(root.value) is None):
            self.problems.add(Place(self.source, 1, 1, self.lines[0].rstrip("\r")), (), "is empty")
            return None
        if not isinstance(root, MappingNode):
            found = "a list" if isinstance(root, SequenceNode) else "a single value"
            self.problems.add(self.place(root.start_mark), (), f"must hold sections (`model:`, ...), found {found}")
            return None
        return self.build(root, ())

    def build(self, node: Any, path: Path_) -> Node:
        place = self.place(node.start_mark)
        self.num_nodes += 1
        if any(node is outer for outer in self.open_nodes):
            self.problems.add(place, path, "the alias contains itself")
            return Node(None, place)
        if self.num_nodes > MOST_NODES:
            if self.num_nodes == MOST_NODES + 1:
                self.problems.add(place, path, f"aliases unfold to more than {MOST_NODES} values")
            return Node(None, place)
        self.open_nodes.append(node)
        try:
            if isinstance(node, ScalarNode):
                return self.scalar(node, place, path)
            self.explicit_tag(node, place, path)
            if isinstance(node, MappingNode):
                return self.mapping(node, place, path)
            return Node([self.build(child, (*path, i)) for i, child in enumerate(node.value)], place)
        finally:
            self.open_nodes.pop()

    def explicit_tag(self, node: Any, place: Place, path: Path_) -> str | None:
        """The tag written before a value: only `!!str` means anything in a recipe."""
        match = TAG.match(self.text, node.start_mark.index)
        if match and match[1] != "!!str":
            self.problems.add(place, path, f"the tag `{match[1]}` is not supported")
        return match[1] if match else None

    def scalar(self, node: Any, place: Place, path: Path_) -> Node:
        if self.explicit_tag(node, place, path) or node.style:
            return Node(node.value, place)
        return Node(typed(node.value), place, plain=True)

    def mapping(self, node: Any, place: Place, path: Path_) -> Node:
        value: dict[Any, Node] = {}
        base: Node | None = None
        for key_node, child_node in node.value:
            key_place = self.place(key_node.start_mark)
            if not isinstance(key_node, ScalarNode):
                self.problems.add(key_place, path, "a key must be a word or a number")
                continue
            if key_node.value == "<<" and not key_node.style:
                base = self.merge_key(child_node, base, path)
                continue
            key = key_node.value if key_node.style else typed(key_node.value)
            if isinstance(key, bool | float) or key is None:
                key = key_node.value
            key = str(key) if isinstance(key, str) else key
            if key in value:
                first = value[key].key
                self.problems.add(
                    key_place, (*path, key), f"is here twice, first in line {first.line if first else '?'}"
                )
                continue
            value[key] = replace(self.build(child_node, (*path, key)), key=key_place)
        result = Node(value, place)
        if base is None:
            return result
        return replace(result, value={**base.value, **value})  # YAML's merge key is shallow

    def merge_key(self, node: Any, base: Node | None, path: Path_) -> Node:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        value: dict[Any, Node] = dict(base.value) if base else {}
        for source in sources:
            built = self.build(source, path)
            if isinstance(built.value, dict):
                value = {**built.value, **value}
            else:
                self.problems.add(self.place(source.start_mark), (*path, "<<"), "must be a mapping, such as `*anchor`")
        return Node(value, self.place(node.start_mark))


def _reason(error: MarkedYAMLError, place: Place) -> str:
    problem = _one_line(error.problem or error.context or "")
    if "\\t" in problem or "\t" in place.text[: place.column]:
        return "a tab; indent with spaces"
    if "mapping values are not allowed" in problem:
        problem = "`: ` is not allowed here; quote the text, or check the indentation"
    elif "expected <block end>" in problem:
        problem = "does not fit the lines before; check the indentation"
    elif "expected a single document" in _one_line(error):
        problem = "a recipe is one document; a second one begins here (`---`)"
    if "${" in place.text and "[" in place.text:
        problem += '; inside [ ] quote a variable: ["${VAR}"]'
    return problem


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
