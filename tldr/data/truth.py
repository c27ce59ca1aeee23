"""Is a statement true? Files say so as booleans, as 0 and 1, or in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def truth(value: Any) -> bool | None:
    """What ``value`` says; None where that is neither true nor false."""
    return WORDS.get(str(value).strip().lower())


def truths(values: Iterable[Any], column: str) -> list[bool]:
    """What the values of a ``column`` say. Raises ValueError with those that say neither."""
    given = list(values)
    found = [truth(value) for value in given]
    strange = sorted({repr(value) for value, said in zip(given, found, strict=True) if said is None})
    if strange:
        raise ValueError(
            f"the column {column} must say true or false (or 1, 0); here it also has {', '.join(strange[:3])}"
        )
    return [said is True for said in found]
