"""Targets: what a name stands for, and what is called with which arguments."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from automodel.errors import InputError
from automodel.recipe import Recipe, RecipeError

Load = Callable[..., Recipe]
Message = Callable[..., str]
MODEL = "model:\n  _target_: toy-model\n  path: x\n"


@pytest.mark.parametrize("name", ["toy-model", "toybox:toy-model", "nemo_automodel.Toy.from_pretrained"])
def test_a_provider_is_found_by_name_alias_and_plugin(name: str, load: Load) -> None:
    target = load(f"model:\n  _target_: {name}\n  path: x\n").target("model")
    assert target is not None
    assert (target.name, target.location, target.kind, target.plugin) == (
        name,
        "toybox.things:model",
        "model",
        "toybox",
    )


def test_a_dotted_path_into_an_allowed_package_is_a_target(load: Load) -> None:
    recipe = load("optimizer:\n  _target_: torch.optim.AdamW\n  lr: 1e-3\n  betas: [0.9, 0.95]\n")
    target = recipe.target("optimizer")
    assert target is not None
    assert target.location == "torch.optim.adamw:AdamW"
    assert target.kwargs == {"lr": 1e-3, "betas": (0.9, 0.95)}


def test_a_dotted_path_into_a_plugin_or_an_allowed_target_works(load: Load, problems: Message) -> None:
    assert load("model: {_target_: toybox.things.model, path: x}\n").has("model")
    text = "dataset:\n  _target_: json.loads\n  s: '[1]'\n"
    assert "--allow-target json" in problems(text)
    target = load(text, allow_targets=["json"]).target("dataset")
    assert target is not None
    assert target.build() == [1]


def test_what_transformers_exports_is_a_target(load: Load) -> None:
    text = "model:\n  _target_: transformers.AutoModelForCausalLM.from_pretrained\n  pretrained_model_name_or_path: x\n"
    target = load(text + "  dtype: bfloat16\n").targets["model"]
    assert target.location == "transformers.models.auto.modeling_auto:AutoModelForCausalLM.from_pretrained"


def test_arguments_are_converted(load: Load) -> None:
    recipe = load(f"{MODEL}  layers: 1e1\n  rate: 1\n  size: none\n  where: a/b\n  betas: [1, 2]\n  note: 'none'\n")
    kwargs = recipe.targets["model"].kwargs
    assert kwargs == {
        "path": "x",
        "layers": 10,
        "rate": 1.0,
        "size": None,
        "where": Path("a/b"),
        "betas": (1.0, 2.0),
        "note": "none",
    }
    assert type(kwargs["layers"]) is int


@pytest.mark.parametrize("word", ["none", "None", "NONE", "'null'", "'none'", "null"])
def test_none_as_a_word_is_null_where_null_is_allowed(word: str, load: Load) -> None:
    assert load(f"{MODEL}  size: {word}\n").targets["model"].kwargs["size"] is None


def test_none_as_a_word_stays_a_string_where_null_is_not_allowed(load: Load) -> None:
    kwargs = load(f"{MODEL}  names: none\n").targets["model"].kwargs
    assert kwargs["names"] == "none"


def test_building_imports_the_target_and_only_then(load: Load) -> None:
    sys.modules.pop("toybox.things", None)
    target = load(MODEL).targets["model"]
    assert "toybox.things" not in sys.modules
    assert target.build() == {"path": "x", "layers": 2, "size": None, "where": Path()}
    assert "toybox.things" in sys.modules


def test_injected_values_go_to_the_callables_that_take_them(load: Load) -> None:
    recipe = load(
        "dataloader:\n  _target_: toy-loader\n  batch_size: 4\n"
        "  collate_fn: {_target_: toy-collate, marker: m}\n  stages: [{_target_: toy-collate}]\n"
    )
    target = recipe.targets["dataloader"]
    assert target.accepts("dataset")
    assert not target.accepts("processor")
    built = target.build(dataset="rows", processor="tokenizer", seed=3)
    assert built == {
        "dataset": "rows",
        "batch_size": 4,
        "collate_fn": ("collate", "tokenizer", "m"),
        "stages": [("collate", "tokenizer", "")],
    }
    assert target.kwargs["collate_fn"].path == ("dataloader", "collate_fn")
    assert target.kwargs["stages"][0].path == ("dataloader", "stages", 0)


def test_a_nested_target_may_stand_where_a_callable_belongs(load: Load) -> None:
    recipe = load("dataset:\n  _target_: rows\n  path: x\n  transform: {_target_: toybox.things.anything, a: 1}\n")
    assert recipe.targets["dataset"].build(processor=None).transform == {"a": 1}


def test_open_targets_get_every_key_but_no_injected_value_they_do_not_name(load: Load) -> None:
    target = load("dataset:\n  _target_: anything\n  more: [1, {a: b}]\n").targets["dataset"]
    assert not target.accepts("more")
    assert target.build(processor=1) == {"more": [1, {"a": "b"}]}


def test_an_absent_section_gives_the_default_or_none(load: Load) -> None:
    recipe = load(MODEL)
    optimizer = recipe.target("optimizer")
    assert optimizer is not None
    assert (optimizer.name, optimizer.kwargs, recipe.has("optimizer")) == ("adamw", {}, False)
    assert recipe.target("peft") is None
    assert recipe.target("notebook") is None
    assert recipe.target("no_such_section") is None


def test_a_section_without_target_takes_the_default(load: Load) -> None:
    assert load("optimizer:\n  lr: 3e-4\n").targets["optimizer"].name == "adamw"


def test_loggers_are_sections_by_their_name(load: Load) -> None:
    recipe = load("notebook:\n  project: p\nrng: {}\n")
    assert [target.name for target in recipe.sections_of("logger")] == ["notebook"]
    assert recipe.sections_of("model") == []


def test_required_sections_are_named_together(load: Load) -> None:
    recipe = load("rng: {}\n")
    recipe.require("rng")
    with pytest.raises(RecipeError) as caught:
        recipe.require("model", "dataset", "peft")
    message = str(caught.value)
    assert "the section `model` is missing; write `model:` with a `_target_`: toy-model" in message
    assert "the section `dataset` is missing" in message
    assert "the section `peft` is missing; no installed plugin brings one" in message


def test_a_target_whose_dependency_is_missing_is_told_apart(load: Load) -> None:
    target = load("rng: {}\nmodel:\n  _target_: needs-missing\n").targets["model"]
    with pytest.raises(InputError, match=r"r\.yaml:2:1: model: `needs-missing` cannot be imported: .*absent_xyz"):
        target.build()


def test_what_a_provider_finds_wrong_gets_the_position(load: Load) -> None:
    with pytest.raises(InputError, match=r"^r\.yaml:1:1: model: /nowhere holds no model$"):
        load("model:\n  _target_: picky\n  path: /nowhere\n").targets["model"].build()
    with pytest.raises(InputError, match=r"^data\.txt:3:1: bad holds no model$"):
        load("model:\n  _target_: picky\n  path: 'data.txt:3:1: bad'\n").targets["model"].build()


def test_errors_of_a_call_are_not_hidden(load: Load) -> None:
    with pytest.raises(TypeError):
        load("dataset:\n  _target_: rows\n  path: x\n").targets["dataset"].build()


def test_loading_a_recipe_imports_nothing_that_it_names(load: Load) -> None:
    sys.modules.pop("toybox.things", None)
    load(f"{MODEL}optimizer: {{_target_: torch.optim.SGD, lr: 1}}\n")
    assert "toybox.things" not in sys.modules
