"""Is one better than the other, from a few runs of each? Means over seeds with Student's interval, and the paired test.

Two methods that share a seed share the pool's draw, the model's first weights and the order of the data, so their
difference varies less than either of them: the interval is that of the mean difference (Student 1908, "The probable
error of a mean"). Distribution of t: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
Nothing is corrected for the number of comparisons: of twenty that differ in nothing, one is called different.

Shapes: n seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "worse", "indistinguishable", "unknown"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The ``mean`` of ``seeds`` numbers, and the ``half`` width of its interval: NaN for fewer than two numbers."""

    mean: float
    half: float
    seeds: int

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if math.isnan(self.half) else f"{self.mean:.1f} ± {self.half:.1f}"


@dataclass(frozen=True)
class Comparison:
    """A ``verdict``, and the interval of the ``difference`` that it comes from."""

    verdict: Verdict
    difference: Interval


def t_probability(t: float, freedom: int) -> float:
    """P(|T| <= ``t``) for Student's T with ``freedom`` degrees of freedom, by the finite sums for whole numbers."""
    if freedom < 1:
        raise ValueError(f"freedom={freedom}; Student's distribution wants a whole number from 1")
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    even = freedom % 2 == 0
    term = 1.0 if even else cosine
    total = term if freedom > 1 else 0.0
    for k in range(2, freedom - 1, 2):  # the sum's further terms, each from the one before
        term *= cosine**2 * ((k - 1) / k if even else k / (k + 1))
        total += term
    return sine * total if even else (angle + sine * total) * 2 / math.pi


def t_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = ``confidence``: 12.706 for 0.95 and one degree of freedom, 1.960 for very many."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; it is a probability inside (0, 1), such as 0.95")
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """The mean of ``values`` (n,) and its interval by Student's t with n - 1 degrees of freedom."""
    count = len(values)
    if not count:
        raise ValueError("an interval wants one value at least")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Interval(mean, t_quantile(confidence, count - 1) * math.sqrt(variance / count), count)


def compare(
    one: Mapping[int, float], other: Mapping[int, float], *, confidence: float = CONFIDENCE
) -> Comparison | None:
    """``one`` against ``other``, each a score by seed (higher is better), over the seeds that both have.

    ``unknown`` with a single seed, whatever the difference; None without any."""
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    difference = interval([one[seed] - other[seed] for seed in shared], confidence=confidence)
    if math.isnan(difference.half):
        return Comparison("unknown", difference)
    if difference.low > 0:
        return Comparison("better", difference)
    return Comparison("worse" if difference.high < 0 else "indistinguishable", difference)
