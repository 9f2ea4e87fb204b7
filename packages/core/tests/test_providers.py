"""Providers and the registry."""

import pytest
from automodel import InputError, Kind, Provider
from automodel.providers import Registry
from automodel.suggest import did_you_mean


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add_kind(Kind("loss", sections=("loss_fn",), default="mse"))
    registry.add_kind(Kind("logger", named_sections=True))
    registry.add("loss", Provider("mse", "math:sqrt", aliases=("old.mse",)), "one")
    registry.add("logger", Provider("book", "math:floor"), "one")
    return registry


def test_a_provider_is_found_by_each_of_its_names(registry: Registry) -> None:
    for name in ("mse", "old.mse", "one:mse"):
        entry = registry.find("loss", name)
        assert entry is not None
        assert (entry.provider.name, entry.plugin) == ("mse", "one")
    assert registry.find("logger", "mse") is None
    assert [entry.kind for entry in registry.find_any("book")] == ["logger"]


def test_a_target_is_imported_by_load_only(registry: Registry) -> None:
    assert registry.load("loss", "mse")(9) == 3
    assert Provider("x", "collections:OrderedDict.fromkeys").load()("a") == {"a": None}
    with pytest.raises(InputError, match="no loss provider is called `msee`; did you mean `mse`"):
        registry.load("loss", "msee")


def test_sections_and_defaults_come_from_kinds(registry: Registry) -> None:
    assert {section: kind.name for section, kind in registry.section_kinds().items()} == {
        "loss_fn": "loss",
        "book": "logger",
    }
    assert registry.default("loss_fn") == "mse"
    assert registry.default("book") == "book"


def test_two_plugins_may_not_share_a_name_silently(registry: Registry) -> None:
    registry.add("loss", Provider("mse", "math:ceil"), "two")
    with pytest.raises(
        InputError, match="plugins one and two both bring a loss provider called `mse`; write `one:mse` or"
    ):
        registry.find("loss", "mse")
    found = registry.find("loss", "two:mse")
    assert found is not None
    assert found.plugin == "two"


def test_one_plugin_may_not_use_a_name_twice(registry: Registry) -> None:
    with pytest.raises(ValueError, match="brings two loss providers called 'mse'"):
        registry.add("loss", Provider("mse", "math:ceil"), "one")


def test_kinds_and_sections_are_unique(registry: Registry) -> None:
    with pytest.raises(ValueError, match="exists already"):
        registry.add_kind(Kind("loss"))
    with pytest.raises(ValueError, match="belongs to the kind 'loss' already"):
        registry.add_kind(Kind("other", sections=("loss_fn",)))


@pytest.mark.parametrize("target", ["math", "math.sqrt", ":sqrt", "math:"])
def test_a_target_names_module_and_attribute(target: str) -> None:
    with pytest.raises(ValueError, match=r"must read 'package\.module:attribute'"):
        Provider("x", target)


def test_suggestions_are_near_or_a_list() -> None:
    assert did_you_mean("LAYER", ["layers", "rate"]) == "; did you mean `layers`?"
    assert did_you_mean("zzz", ["layers", "rate"]) == "; known: layers, rate"
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", map(str, range(20)), most=2).endswith("... (20 in all)")
