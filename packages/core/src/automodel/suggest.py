"""«Did you mean»: the nearest known word, or the list of known words."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], most: int = 12) -> str:
    """Return `"; did you mean `x`?"` for the closest known word, else `"; known: a, b, ..."`, else an empty string."""
    names = sorted({name for name in known if name})
    lowered = {name.lower(): name for name in names}
    if near := difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6):
        return f"; did you mean `{lowered[near[0]]}`?"
    if not names:
        return ""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return f"; known: {', '.join(names[:most])}{more}"
