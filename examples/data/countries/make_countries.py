"""Make train.jsonl and validation.jsonl: questions about ISO codes, from the tables that pycountry packages.

    python examples/data/countries/make_countries.py [DIRECTORY]

The same version of pycountry gives the same files. Whole countries, languages and currencies are held out for
validation: none of their rows is in train.jsonl.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pycountry

HELD_OUT = {"country": 22, "language": 14, "currency": 6}


def rows_of_country(country) -> Iterator[tuple[str, str]]:
    name = getattr(country, "common_name", country.name)
    yield f"What is the three-letter ISO 3166 code of {name}?", country.alpha_3
    yield f"What is the two-letter ISO 3166 code of {name}?", country.alpha_2
    yield f"Which country has the ISO 3166 code {country.alpha_3}?", name


def rows_of_language(language) -> Iterator[tuple[str, str]]:
    yield f"What is the two-letter ISO 639 code of the language {language.name}?", language.alpha_2
    yield f"What is the three-letter ISO 639 code of the language {language.name}?", language.alpha_3


def rows_of_currency(currency) -> Iterator[tuple[str, str]]:
    yield f"What is the ISO 4217 code of the currency {currency.name}?", currency.alpha_3


TABLES = {
    "country": (pycountry.countries, rows_of_country),
    "language": ([row for row in pycountry.languages if hasattr(row, "alpha_2")], rows_of_language),
    "currency": (pycountry.currencies, rows_of_currency),
}


def shuffled(items: list, key) -> list:
    """In an order that looks random and depends on the items only."""
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())


def main(directory: Path) -> None:
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for kind, (table, rows_of) in TABLES.items():
        for place, entry in enumerate(shuffled(list(table), lambda entry, kind=kind: f"{kind} {entry.alpha_3}")):
            splits["validation" if place < HELD_OUT[kind] else "train"] += rows_of(entry)
    for split, rows in splits.items():
        lines = [
            json.dumps({"instruction": question, "output": answer}, ensure_ascii=False)
            for question, answer in shuffled(rows, lambda row: row[0])
        ]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {len(lines)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
