"""Bad rows: each one is told with its file and line; a few of them make one message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from automodel import InputError

SHOWN = 5


class BadRowError(Exception):
    """A row that cannot be trained on; says why, without its place."""


def kind_name(value: object) -> str:
    """What a person calls the type of a JSON value."""
    names = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


@dataclass
class RowReport:
    """Collects what is wrong with the rows of a data set.

    Args:
        on_bad_row: `error` raises at the end, `skip` tells how many rows were left out.
        truncation: what becomes of rows that are too long.
        max_length: tokens a row may have, or None.
    """

    on_bad_row: Literal["error", "skip"]
    truncation: str
    max_length: int | None
    num_bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    num_long: int = 0
    longest: int = 0
    first_long: str = ""

    def bad(self, place: str, why: str) -> None:
        """Note a row that cannot be used."""
        self.num_bad += 1
        if len(self.first_bad) < SHOWN:
            self.first_bad.append(f"{place}: {why}")

    def long(self, place: str, num_tokens: int) -> None:
        """Note a row with more than `max_length` tokens."""
        self.num_long += 1
        self.longest = max(self.longest, num_tokens)
        self.first_long = self.first_long or place

    def raise_errors(self) -> None:
        """Raise what is an error so far.

        Raises:
            InputError: bad rows with `on_bad_row: error`, long rows with `truncation: error`.
        """
        problems = []
        if self.num_bad and self.on_bad_row == "error":
            problems.append(f"{_rows(self.num_bad)} of the data set cannot be used:\n{self._places()}")
            problems.append("mend them, or leave them out with on_bad_row: skip")
        if self.num_long and self.truncation == "error":
            problems.append(
                f"{_rows(self.num_long)} of the data set {_are(self.num_long)} longer than {self.max_length} tokens; "
                f"the longest has {self.longest}, the first is {self.first_long}\n"
                f"raise max_length, or set truncation: right (cuts the end), left (keeps the end) or skip"
            )
        if problems:
            raise InputError("\n".join(problems))

    def settle(self) -> list[str]:
        """Return what is no error, but ought to be told.

        Raises:
            InputError: as `raise_errors`.
        """
        self.raise_errors()
        told = []
        if self.num_bad:
            left_out = f"cannot be used and {_are(self.num_bad)} left out"
            told.append(f"{_rows(self.num_bad)} of the data set {left_out}:\n{self._places()}")
        if self.num_long and self.truncation != "split":
            fate = "left out" if self.truncation == "skip" else f"cut on the {self.truncation}"
            told.append(
                f"{_rows(self.num_long)} longer than {self.max_length} tokens {_are(self.num_long)} {fate} "
                f"(truncation: {self.truncation}); the longest has {self.longest}, the first is {self.first_long}"
            )
        return told

    def _places(self) -> str:
        more = [f"  ... and {self.num_bad - len(self.first_bad)} more"] if self.num_bad > len(self.first_bad) else []
        return "\n".join([f"  {line}" for line in self.first_bad] + more)


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
