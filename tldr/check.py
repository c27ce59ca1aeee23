"""Checks of the configuration's values, whose errors have the same wording everywhere."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Is ``value`` a number, or with ``whole`` an integer, including NumPy's? Booleans are not numbers."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def check_number(
    key: str, value: Any, meaning: str, *, low: float, high: float = math.inf, whole: bool = False
) -> None:
    """Raises ValueError, saying what ``key`` must be (the ``meaning``), unless ``value`` is a number, or with ``whole``
    an integer, from ``low`` to ``high``, both included."""
    if not is_number(value, whole=whole) or not low <= float(value) <= high:
        raise ValueError(f"{key}={value!r} must be {meaning}")


def check_flag(group: str, /, **options: Any) -> None:
    """Raises ValueError naming the first of the ``options`` of a configuration ``group`` that is not a boolean. Hydra
    reads ``yes`` and ``no`` as strings, and any string that is not empty counts as true."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{group}.{name}={value!r}; it is true or false")


def check_seed(seed: Any) -> None:
    """Raises ValueError for a seed that NumPy, torch or Lightning does not take."""
    check_number("seed", seed, "a whole number from 0 to 2**32 - 1", low=0, high=2**32 - 1, whole=True)
