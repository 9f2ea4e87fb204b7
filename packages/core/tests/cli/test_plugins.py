"""Plugins that are broken, blocked, ambiguous or of another version never break the command line."""

import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]
Install = Callable[..., Path]


def models(name: str, target: str = "torch.nn:Linear", extra: str = "") -> str:
    return (
        f"{extra}\nfrom automodel import Provider, hookimpl\n@hookimpl\ndef model_providers():\n"
        f"    aliases = ('nemo_automodel.{name}',)\n"
        f"    return [Provider({name!r}, {target!r}, aliases, summary='a model of {name}')]\n"
    )


def row(result: subprocess.CompletedProcess[str], plugin: str) -> str:
    assert result.returncode == 0, result.stderr
    return next(line for line in result.stdout.splitlines() if line.split()[:1] == [plugin])


def test_plugins_are_listed_with_version_module_and_providers(run: Run, install: Install) -> None:
    install("good", "2.5", plugin=models("m1"))
    line = row(run("plugins"), "good")
    assert line.split() == ["good", "2.5", "good.plugin", "model:", "m1", "ok"]
    assert "optimizer: adamw, adam, sgd" in row(run("plugins"), "automodel-core")


def test_a_plugin_that_cannot_be_imported_is_listed_as_broken(run: Run, install: Install, tmp_path: Path) -> None:
    install("good", plugin=models("m1"))
    install("bad", plugin="import absent_library\n")
    result = run("plugins")
    assert "broken: ModuleNotFoundError: No module named 'absent_library'" in row(result, "bad")
    assert row(result, "good").split()[-1] == "ok"
    (tmp_path / "r.yaml").write_text("model: {_target_: m2}\n")
    message = run("validate", "-c", "r.yaml").stderr
    assert "plugins that could not be loaded: bad (ModuleNotFoundError: No module named 'absent_library')" in message
    shown = run("plugins", "show", "bad")
    assert "broken: ModuleNotFoundError" in shown.stdout


def test_a_plugin_for_another_version_of_the_contract_is_refused(run: Run, install: Install) -> None:
    install("future", plugin=models("m1", extra="AUTOMODEL_HOOKS = 99"))
    assert "it was written for version 99 of the hook contract" in row(run("plugins"), "future")
    assert run("plugins", "show", "m1").returncode == 2


def test_a_plugin_that_implements_no_hook_of_ours_is_told_which(run: Run, install: Install) -> None:
    install("typo", plugin=models("m1").replace("model_providers", "model_provider"))
    assert "`model_provider`, which is no hook; did you mean `model_providers`?" in row(run("plugins"), "typo")


def test_a_plugin_that_fails_half_way_brings_nothing(run: Run, install: Install) -> None:
    hook = "@hookimpl\ndef loss_providers():\n    return [Provider('l', 'math:sqrt'), 3]\n"
    install("half", plugin=models("m1") + hook)
    assert "its hook loss_providers returned 3, which is no Provider" in row(run("plugins"), "half")
    assert run("plugins", "show", "m1").returncode == 2


def test_a_blocked_plugin_brings_nothing(run: Run, install: Install) -> None:
    install("good", plugin=models("m1"))
    assert "blocked by AUTOMODEL_BLOCK_PLUGINS" in row(run("plugins", AUTOMODEL_BLOCK_PLUGINS="good, other"), "good")
    assert run("plugins", "show", "m1", AUTOMODEL_BLOCK_PLUGINS="good").returncode == 2


def test_a_name_of_two_plugins_must_be_qualified(run: Run, install: Install, tmp_path: Path) -> None:
    install("one", plugin=models("m1"))
    install("two", plugin=models("m1"))
    (tmp_path / "r.yaml").write_text("model:\n  _target_: m1\n  in_features: 1\n  out_features: 1\n")
    message = run("validate", "-c", "r.yaml").stderr
    assert "r.yaml:2:13: model._target_: the plugins one and two both bring a model provider called `m1`" in message
    assert "write `one:m1` or `two:m1`" in message
    assert "both bring" not in run("validate", "-c", "r.yaml", "model._target_=two:m1").stderr
    shown = run("plugins", "show", "m1").stdout
    assert "m1: model provider of one" in shown
    assert "m1: model provider of two" in shown


def test_show_describes_a_provider_by_name_alias_and_plugin(run: Run, install: Install) -> None:
    install("good", plugin=models("m1"))
    for name in ("m1", "nemo_automodel.m1", "good:m1"):
        result = run("plugins", "show", name)
        assert result.stdout.startswith("m1: model provider of good\na model of m1\nalso called nemo_automodel.m1\n")
        rows = [line.split() for line in result.stdout.splitlines()]
        assert ["in_features", "int", "required", "size", "of", "each", "input", "sample"] in rows
        assert any(words[:3] == ["bias", "bool", "True"] for words in rows)


def test_show_leaves_out_what_automodel_gives(run: Run) -> None:
    result = run("plugins", "show", "sgd")
    assert "momentum" in result.stdout
    assert "params" not in result.stdout


def test_show_of_a_plugin_lists_its_providers(run: Run, install: Install) -> None:
    install("good", "2.5", plugin=models("m1"))
    result = run("plugins", "show", "good")
    assert result.stdout.startswith("good 2.5 (good.plugin)\n")
    assert any(line.split() == ["model", "m1", "a", "model", "of", "m1"] for line in result.stdout.splitlines())


def test_show_of_a_provider_that_does_not_exist_says_so(run: Run, install: Install) -> None:
    install("hollow", plugin=models("m1", "hollow.absent:model"))
    result = run("plugins", "show", "m1")
    assert result.returncode == 2
    assert (
        "the parameters of `m1` cannot be read: there is no Python source of a module `hollow.absent`" in result.stderr
    )


def test_a_new_kind_brings_its_section(run: Run, install: Install, tmp_path: Path) -> None:
    install(
        "kinds",
        plugin="from automodel import Kind, Provider, hookimpl\n"
        "@hookimpl\ndef kinds():\n    return [Kind('profiler', sections=('profiler',), default='p')]\n"
        "@hookimpl\ndef profiler_providers():\n    return [Provider('p', 'kinds.things:p')]\n",
        things="def p(every: int = 1): ...\n",
    )
    (tmp_path / "r.yaml").write_text("profiler: {evry: 2}\n")
    message = run("validate", "-c", "r.yaml").stderr
    assert "r.yaml:1:12: profiler.evry: `p` takes no `evry`; did you mean `every`?" in message


def test_output_that_is_no_terminal_is_not_cut(run: Run, install: Install) -> None:
    names = [f"provider-with-a-long-name-{i}" for i in range(30)]
    providers = ", ".join(f"Provider({name!r}, 'torch.nn:Linear')" for name in names)
    hook = f"@hookimpl\ndef model_providers():\n    return [{providers}]\n"
    install("wide", plugin=f"from automodel import Provider, hookimpl\n{hook}")
    assert all(name in row(run("plugins"), "wide") for name in names)
