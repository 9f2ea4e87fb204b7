"""Files, environment variables and overrides become one recipe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from automodel.recipe import Recipe

Load = Callable[..., Recipe]
Message = Callable[..., str]
MODEL = "model:\n  _target_: toy-model\n  path: x\n"


def argument(recipe: Recipe, name: str = "x") -> Any:
    return recipe.targets["dataset"].kwargs[name]


@pytest.mark.parametrize(
    ("text", "env", "value"),
    [
        ("${A}", {"A": "5e-5"}, 5e-5), ("${A}", {"A": "true"}, True), ("${A}", {"A": "null"}, None),
        ("${A}", {"A": "[1, b]"}, [1, "b"]), ("${A}", {"A": "x: y"}, "x: y"), ("${A}", {"A": ""}, None),
        ("'${A}'", {"A": "5"}, "5"), ('"${A}"', {"A": "true"}, "true"), ("${A:4}", {}, 4), ("${A:4}", {"A": "5"}, 5),
        ("${A:}", {}, None), ("'${A:}'", {}, ""), ("${A:http://h:80/p}", {}, "http://h:80/p"),
        ("${A}${B:7}", {"A": "1"}, 17), ("${A}/${B:b}.jsonl", {"A": "/d"}, "/d/b.jsonl"), ("$${A}", {}, "${A}"),
        ("$$A $A", {"A": "1"}, "$$A $A"), ("${A}", {"A": "[not, closed"}, "[not, closed"),
        ("${A}", {"A": "${B}"}, "${B}"),
    ],
)  # fmt: skip
def test_variables_are_replaced_and_plain_scalars_typed_again(
    text: str, env: dict[str, str], value: Any, load: Load
) -> None:
    found = argument(load(f"dataset:\n  _target_: anything\n  x: {text}\n", env=env))
    assert (found, type(found)) == (value, type(value))


def test_variables_work_in_lists_and_targets(load: Load) -> None:
    recipe = load("dataset:\n  _target_: ${KIND:anything}\n  x: ['${A}', '${B:c}']\n", env={"A": "1"})
    assert argument(recipe) == ["1", "c"]


def test_later_files_go_over_earlier_ones_deeply(load: Load) -> None:
    recipe = load(
        "dataset:\n  _target_: anything\n  x: [1, 2]\n  y: {a: 1, b: 2}\nrng: {seed: 1}\n",
        "dataset:\n  x: [3]\n  y: {b: 3, c: 4}\n",
        "rng: null\n",
    )
    assert recipe.resolved() == {"dataset": {"_target_": "anything", "x": [3], "y": {"a": 1, "b": 3, "c": 4}}}
    assert not recipe.has("rng")


def test_a_mistake_in_a_later_file_is_reported_there(problems: Message) -> None:
    message = problems(MODEL, "model:\n  layers: x\n", "model:\n  lyers: 1\n")
    assert message.startswith("r.yaml, r1.yaml, r2.yaml: 2 problems\nr1.yaml:2:11: model.layers")
    assert "r2.yaml:2:3: model.lyers" in message


def test_a_section_that_a_file_removes_is_not_checked(load: Load) -> None:
    assert load("model: {_target_: nowhere}\n", "model:\n").resolved() == {}


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--dataset.x", "3"], 3), (["--dataset.x=3"], 3), (["dataset.x=3"], 3), (["--dataset.x", "-1"], -1),
        (["dataset.x=a=b"], "a=b"), (["dataset.x='3'"], "3"), (["--dataset.x", "[a, 1]"], ["a", 1]),
        (["dataset.x={a: 1}"], {"a": 1}), (["dataset.x="], None), (["dataset.x.y.z=1"], {"y": {"z": 1}}),
        (["dataset.x=1", "dataset.x=2"], 2), (["dataset.x=${A}"], 7), (["dataset.x=none"], "none"),
    ],
)  # fmt: skip
def test_overrides_go_over_the_files_and_are_typed(words: list[str], value: Any, load: Load) -> None:
    recipe = load("dataset:\n  _target_: anything\n", overrides=words, env={"A": "7"})
    assert recipe.resolved()["dataset"]["x"] == value


def test_an_override_reaches_into_a_list(load: Load) -> None:
    recipe = load("dataset:\n  _target_: anything\n  x: [{a: 1}, 2]\n", overrides=["dataset.x.0.a=5", "dataset.x.1=6"])
    assert argument(recipe) == [{"a": 5}, 6]


def test_an_override_removes_a_section(load: Load) -> None:
    assert load(MODEL, overrides=["model=null"]).resolved() == {}


@pytest.mark.parametrize("overrides", [{"rng.seed": 9}, {"rng": {"seed": 9}}])
def test_overrides_may_be_a_mapping(overrides: dict[str, Any], load: Load) -> None:
    recipe = load(MODEL, overrides=overrides)
    assert recipe.resolved()["rng"] == {"seed": 9}
    assert recipe.where("rng", "seed") == "overrides"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.layers"], "command line: --model.layers: has no value"),
        (["--model.layers", "--rng.seed", "1"], "command line: --model.layers: has no value"),
        (["model.layers"], "command line: model.layers: has no value"),
        (["=3"], "command line: =3: is no override"),
        (["--model.layers", "x"], "command line: --model.layers x: expected integer, found `x`"),
        (["model.layer=1"], "command line: model.layer=1: `toy-model` takes no `layer`"),
        (["model.path.deep=1"], "command line: model.path.deep=1: `model.path` is a single value and has no keys"),
        (["model.names.4=x"], "command line: model.names.4=x: `model.names` is a list of 2; its elements are 0 to 1"),
        (["modl.x=1"], "command line: modl.x=1: modl: there is no section of this name; did you mean `model`?"),
        (["--peft.r", "8"], "command line: --peft.r 8: peft: no installed plugin brings a peft provider"),
    ],
)
def test_a_wrong_override_is_quoted(words: list[str], message: str, problems: Message) -> None:
    assert message in problems(f"{MODEL}  names: [a, b]\n", overrides=words)


def test_every_value_knows_where_it_was_written(load: Load) -> None:
    recipe = load(f"{MODEL}  counts:\n    - 1\n    - 2\n", "rng: {seed: 1}\n", overrides=["--model.layers", "4"])
    assert recipe.where("model", "path") == "r.yaml:3:9"
    assert recipe.where("model", "counts", 1) == "r.yaml:6:7"
    assert recipe.where("model", "absent") == "r.yaml:2:3"
    assert recipe.where("rng", "seed") == "r1.yaml:1:13"
    assert recipe.where("model", "layers") == "command line"


def test_secrets_are_not_in_the_resolved_recipe(load: Load) -> None:
    recipe = load(
        "notebook: {api_key: abc, project: '${MY_TOKEN}'}\n"
        "dataset:\n  _target_: anything\n  hf_token: abc\n  pad_token: <pad>\n  max_tokens: 5\n  tokenizer: t\n"
        "  deep: [{password: abc, start_of_response_token: <r>}]\n  num_key_value_heads: 2\n  token: true\n",
        env={"MY_TOKEN": "abc"},
    )
    assert "abc" not in recipe.dump()
    assert recipe.resolved() == {
        "notebook": {"api_key": "***", "project": "***"},
        "dataset": {
            "_target_": "anything",
            "hf_token": "***",
            "pad_token": "<pad>",
            "max_tokens": 5,
            "tokenizer": "t",
            "deep": [{"password": "***", "start_of_response_token": "<r>"}],
            "num_key_value_heads": 2,
            "token": True,
        },
    }
    assert recipe.targets["notebook"].kwargs == {"api_key": "abc", "project": "abc"}


def test_a_dump_is_a_recipe_that_resolves_to_the_same(load: Load, tmp_path: Path) -> None:
    recipe = load(f"{MODEL}  rate: 5e-5\n  note: '5e-5'\n  dtype: auto\n  size: none\nrng: {{seed: 3}}\n")
    again = load(recipe.dump())
    assert again.resolved() == recipe.resolved()
    assert again.digest() == recipe.digest()
    assert again.targets["model"].kwargs == recipe.targets["model"].kwargs


def test_the_digest_depends_on_values_and_not_on_layout(load: Load) -> None:
    one = load("rng: {seed: 3}\nmodel: {_target_: toy-model, path: x}\n")
    same = load("# a comment\nmodel:\n  path: 'x'\n  _target_: toy-model\nrng:\n  seed: ${S:3}\n")
    other = load("rng: {seed: 4}\nmodel: {_target_: toy-model, path: x}\n")
    assert one.digest() == same.digest() != other.digest()
    assert len(one.digest()) == 64
