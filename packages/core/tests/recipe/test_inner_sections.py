"""Sections within sections, sections whose key names the provider, names of providers as values, Python's own words."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from automodel.plugins import discover
from automodel.recipe import Recipe, load_recipe
from automodel.recipe.source import RecipeError

PLUGIN = """
from automodel import Kind, Provider, hookimpl

@hookimpl
def kinds():
    return [
        Kind("oven", sections=("kitchen.oven",), default="gas"),
        Kind("waiter", sections=("service.waiter",), named_by="who"),
        Kind("dish"),
    ]

@hookimpl
def oven_providers():
    return [Provider("gas", "cafe.things:Gas")]

@hookimpl
def waiter_providers():
    return [Provider("ann", "cafe.things:Ann"), Provider("bob", "cafe.things:Bob")]

@hookimpl
def dish_providers():
    return [Provider("soup", "cafe.things:Gas"), Provider("salad", "cafe.things:Gas")]
"""
THINGS = '''
from dataclasses import dataclass
from typing import Annotated
from automodel import ProviderOf

@dataclass
class Gas:
    """An oven.

    Args:
        dishes: what it makes.
        async_: whether nobody waits.
    """
    dishes: list[Annotated[str, ProviderOf("dish")]] | None = None
    async_: bool = False

@dataclass
class Ann:
    tables: int

@dataclass
class Bob:
    shifts: int = 1
'''


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "cafe"
    package.mkdir()
    for name, text in {"__init__": "", "plugin": PLUGIN, "things": THINGS}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    entries = [EntryPoint("automodel-core", "automodel.plugin", "automodel")]
    plugins = discover([*entries, EntryPoint("cafe", "cafe.plugin", "automodel")])
    assert not plugins.broken

    def load_text(text: str, *overrides: str) -> Recipe:
        Path("r.yaml").write_text(text)
        return load_recipe(["r.yaml"], overrides, plugins=plugins)

    yield load_text
    for name in [name for name in sys.modules if name.split(".")[0] == "cafe"]:
        del sys.modules[name]


def message(load, text, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_a_section_within_a_section_is_checked_and_built_like_any_other(load):
    recipe = load("kitchen:\n  oven:\n    dishes: [soup, salad]\n    async: true\n")
    assert recipe.has("kitchen.oven")
    oven = recipe.target("kitchen.oven").build()
    assert (oven.dishes, oven.async_) == (["soup", "salad"], True)
    assert load("{}", "kitchen.oven.async=true").target("kitchen.oven").build().async_
    assert load("{}").target("kitchen.oven").build().dishes is None  # by the kind's default
    assert not load("kitchen: {oven: {async: true}}", "kitchen.oven=null").has("kitchen.oven")


def test_what_is_wrong_within_it_is_told_with_its_place(load):
    told = message(load, "kitchen:\n  oven:\n    dishs: [soup]\n    async: 5\n  oevn: {}\nservice: none at all\n")
    assert "r.yaml:3:5: kitchen.oven.dishs: `gas` takes no `dishs`; did you mean `dishes`?" in told
    assert "r.yaml:4:12: kitchen.oven.async: expected true or false, found 5" in told
    assert "r.yaml:5:3: kitchen.oevn: there is no section of this name; did you mean `kitchen.oven`?" in told
    assert "r.yaml:6:10: service: must be a mapping of waiter" in told
    assert "kitchen.oven: must be a mapping" in message(load, "kitchen:\n  oven: 3\n")


def test_a_key_may_name_the_provider(load):
    recipe = load("service:\n  waiter:\n    who: bob\n    shifts: 3\n")
    assert recipe.target("service.waiter").build().shifts == 3
    assert load("service: {waiter: {_target_: bob}}").target("service.waiter").build().shifts == 1
    assert "service.waiter: needs a `who`: ann, bob" in message(load, "service: {waiter: {shifts: 3}}")
    told = message(load, "service:\n  waiter:\n    who: bobb\n")
    assert "r.yaml:3:10: service.waiter.who: no waiter provider is called `bobb`; did you mean `bob`?" in told
    assert "`ann` needs `tables`" in message(load, "service: {waiter: {who: ann}}")


def test_a_value_may_be_the_name_of_a_provider(load):
    told = message(load, "kitchen:\n  oven:\n    dishes: [soup, sallad]\n")
    assert "r.yaml:3:20: kitchen.oven.dishes.1: expected `soup` or `salad`, found `sallad`" in told
    assert "did you mean `salad`?" in told


def test_pythons_own_words_are_keys_without_the_underscore(load):
    assert "takes no `async_`" in message(load, "kitchen: {oven: {async_: true}}")
