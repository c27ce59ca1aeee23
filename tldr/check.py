"""What a number of the configuration has to be, said in the same words everywhere."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Is it one, perhaps a ``whole`` one, NumPy's included? True and false are none."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def check_number(
    key: str, value: Any, meaning: str, *, low: float, high: float = math.inf, whole: bool = False
) -> None:
    """Raises ValueError, naming ``key``, what it is and its ``meaning``, unless ``value`` is a number (a ``whole`` one)
    from ``low`` to ``high``, both included."""
    if not is_number(value, whole=whole) or not low <= float(value) <= high:
        raise ValueError(f"{key}={value!r}; {meaning}")


def check_flag(group: str, /, **options: Any) -> None:
    """Raises ValueError naming the first of the ``options`` of a ``group`` of the configuration that is neither true
    nor false. Hydra reads ``yes`` and ``no`` as texts, and every text but an empty one counts as true."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{group}.{name}={value!r}; it is true or false")


def check_seed(seed: Any) -> None:
    """Raises ValueError for what NumPy, torch and Lightning do not all take."""
    check_number("seed", seed, "a whole number from 0 to 2**32 - 1", low=0, high=2**32 - 1, whole=True)
