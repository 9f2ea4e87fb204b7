"""How the text of a recipe is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from automodel.plugins import Plugins
from automodel.recipe import Recipe, RecipeError, load_recipe

Load = Callable[..., Recipe]
Message = Callable[..., str]

BAD = {
    "a duplicate key": ("rng:\n  seed: 1\n  seed: 2\n", "3:3", "rng.seed: is here twice, first in line 2"),
    "a duplicate section": ("rng: {}\nrng: {}\n", "2:1", "rng: is here twice"),
    "a tab": ("rng:\n\tseed: 1\n", "2:1", "a tab; indent with spaces"),
    "an open bracket": ("model:\n  names: [a, b\n", "2:10", "is not YAML"),
    "one space less": ("model:\n  path: x\n revision: y\n", "3:2", "check the indentation"),
    "an open quote": ("model:\n  path: 'x\n", "2:9", "is not YAML"),
    "two colons": ("model:\n  path: a: b\n", "2:10", "`: ` is not allowed here"),
    "a variable in a flow list": ("model:\n  names: [${A}]\n", "2:12", 'quote a variable: ["${VAR}"]'),
    "a second document": ("rng: {}\n---\nmodel: {}\n", "2:1", "a recipe is one document"),
    "an undefined alias": ("model: *a\n", "1:8", "undefined alias"),
    "a control character": ("model: \x01\n", "1:8", "is not YAML"),
    "a list": ("- model\n", "1:1", "must hold sections (`model:`, ...), found a list"),
    "a word": ("model\n", "1:1", "must hold sections (`model:`, ...), found a single value"),
    "nothing": ("", "1:1", "is empty"),
    "only a comment": ("# nothing\n", "1:1", "is empty"),
    "a tag": ("rng: !!python/object:os.system {}\n", "1:6", "the tag `!!python/object:os.system` is not supported"),
    "a key that is a list": ("? [a]\n: 1\n", "1:3", "a key must be a word or a number"),
    "an alias inside itself": ("rng: &a\n  seed: *a\n", "1:6", "the alias contains itself"),
}


@pytest.mark.parametrize("case", BAD)
def test_text_that_is_no_recipe_is_reported_at_its_place(case: str, problems: Message) -> None:
    text, position, fragment = BAD[case]
    assert f"\nr.yaml:{position}" in (message := problems(text))
    assert fragment in message


def test_a_file_that_is_missing_or_not_utf8_is_reported(toybox: Plugins, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: cannot be read: No such file"):
        load_recipe([tmp_path / "absent.yaml"], plugins=toybox)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"rng: {}\nmodel: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml:2:11: is not UTF-8: the byte 0xe9"):
        load_recipe([latin], plugins=toybox)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(toybox: Plugins, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfrng:\r\n  seed: 3\r\n")
    assert load_recipe([tmp_path / "r.yaml"], plugins=toybox).resolved() == {"rng": {"seed": 3}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5), ("1e4", 1e4), (".5", 0.5), ("-3", -3), ("0x1F", 31), ("0o17", 15), ("010", 10),
        ("yes", "yes"), ("on", "on"), ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"),
        ("true", True), ("False", False), ("~", None), ("null", None), ("-.inf", float("-inf")), ("none", "none"),
        ("'5'", "5"), ('"true"', "true"), ("!!str 5", "5"), ("[1, 'a', b]", [1, "a", "b"]), ("{a: 1}", {"a": 1}),
        ("|\n    two\n    lines", "two\nlines\n"),
    ],
)  # fmt: skip
def test_scalars_are_typed_as_yaml_1_2_does(text: str, value: Any, load: Load) -> None:
    recipe = load(f"dataset:\n  _target_: anything\n  x: {text}\n")
    assert recipe.targets["dataset"].kwargs["x"] == value
    assert type(recipe.resolved()["dataset"]["x"]) is type(value)


def test_anchors_and_merge_keys_work(load: Load) -> None:
    recipe = load("dataset: &d\n  _target_: anything\n  a: 1\n  b: {c: 2}\nvalidation_dataset:\n  <<: *d\n  a: 3\n")
    assert recipe.resolved()["validation_dataset"] == {"_target_": "anything", "a": 3, "b": {"c": 2}}


def test_an_override_of_an_alias_leaves_the_anchor_alone(load: Load) -> None:
    text = "dataset: &d {_target_: anything, b: {c: 2}}\nvalidation_dataset: *d\n"
    recipe = load(text, overrides=["validation_dataset.b.c=5"])
    assert recipe.resolved()["dataset"]["b"] == {"c": 2}
    assert recipe.resolved()["validation_dataset"]["b"] == {"c": 5}


def test_aliases_that_unfold_without_end_are_refused(problems: Message) -> None:
    lines = ["dataset:", "  _target_: anything", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "aliases unfold to more than" in problems("\n".join(lines))
