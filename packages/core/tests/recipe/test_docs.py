"""The examples of docs/recipes.md are what the command prints."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from automodel.cli.main import main
from automodel.recipe import load_recipe

DOCS = Path(__file__).parents[4] / "docs" / "recipes.md"

pytestmark = [
    pytest.mark.skipif(not DOCS.is_file(), reason="not in the repository"),
    pytest.mark.skipif(find_spec("automodel_models_llm") is None, reason="the examples use automodel-models-llm"),
]


def test_the_error_in_the_docs_is_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, printed = re.findall(r"```(?:yaml|text) broken\.yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "broken.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAIN_DATA", raising=False)
    assert main(["validate", "-c", "broken.yaml", "--optimizer.lr", "fast"]) == 2
    assert capsys.readouterr().err == printed


def test_the_recipe_in_the_docs_is_valid(tmp_path: Path) -> None:
    match = re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert match is not None
    (tmp_path / "recipe.yaml").write_text(match[1])
    load_recipe([tmp_path / "recipe.yaml"], needs=("model", "dataset"))
