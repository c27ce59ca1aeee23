"""Controls to compare the methods with. Some choose rows of a pool directly, the oracles by looking at its ground
truth; length bins wrap another selector.

Shapes: N pairs, n = keep.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tldr.cluster import proportional
from tldr.pairs import Pairs
from tldr.report.truth import MISMATCHED, SCENE
from tldr.selector.base import Selection, Selector, best
from tldr.signal.store import Signals


def longest(pool: Pairs, keep: int, seed: int) -> np.ndarray:
    """(n,) the pairs with most words; those of equal length are drawn."""
    return best(pool.words + np.random.default_rng(seed).random(len(pool)), keep)[0]


def oracle(pool: Pairs, keep: int, seed: int, *, wordy: bool = False) -> np.ndarray:
    """(n,) drawn from the pairs with their own caption, one a scene; with ``wordy``, those with most words. Where
    these do not suffice, first repeated scenes come back, then wrong captions."""
    drawn = np.random.default_rng(seed).random(len(pool)) - (pool.words if wordy else 0)
    wrong, scene = pool.column(MISMATCHED).astype(bool), pool.column(SCENE)
    order = np.lexsort((drawn, wrong))
    _, first = np.unique(scene[order], return_index=True)
    again = np.ones(len(pool), bool)
    again[order[first]] = False  # a scene is shown by its best row
    return np.sort(np.lexsort((drawn, again, wrong))[:keep])


ROWS: dict[str, Callable[[Pairs, int, int], np.ndarray]] = {
    "longest": longest,
    "oracle": oracle,
    "oracle_longest": partial(oracle, wordy=True),
}
TRUTH = {"oracle": (MISMATCHED, SCENE), "oracle_longest": (MISMATCHED, SCENE)}  # columns that they cannot do without


class LengthBins(Selector):
    """``inner`` inside each of ``bins`` bins of captions of like length, of which every one keeps its share."""

    def __init__(self, inner: Selector, *, bins: int) -> None:
        if bins < 1:
            raise ValueError(f"length_bins={bins}; one at least")
        self.inner, self.bins = inner, bins
        self.needs, self.needs_target, self.target = inner.needs, inner.needs_target, inner.target
        self.needs_writer = inner.needs_writer

    def check(self, pool: Pairs) -> None:
        """What the inner one asks."""
        self.inner.device = self.device
        self.inner.check(pool)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, **given: Any) -> Selection:
        """Cut at the quantiles of the length; choose in every bin."""
        length = pool.words
        edges = np.unique(np.quantile(length, np.arange(1, self.bins) / self.bins, method="lower"))
        label = np.searchsorted(edges, length, side="left")
        sizes = np.bincount(label)
        rows, reasons = [], [""] * len(pool)
        for number, quota in enumerate(proportional(sizes, keep).tolist()):
            inside = np.flatnonzero(label == number)
            if not len(inside):
                continue
            span = f"captions of {length[inside].min()} to {length[inside].max()} words"
            told = ["none is kept"] * len(inside)
            if quota:
                part = None if signals is None else signals.at(inside)
                found = self.inner(pool.take(inside), part, keep=quota, seed=seed, **given)
                rows.append(inside[found.rows])
                told = found.reasons
            for row, reason in zip(inside.tolist(), told, strict=True):
                reasons[row] = f"{span}: {reason}"
        return Selection(np.sort(np.concatenate(rows)), reasons)
