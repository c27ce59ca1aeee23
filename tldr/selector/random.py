"""A seeded draw without replacement: the control. Larger draws of one seed contain the smaller ones."""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector
from tldr.signal.store import Signals


class Random(Selector):
    """Every subset of ``keep`` pairs is equally likely."""

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """The first ``keep`` of a random order."""
        place = np.empty(len(pool), np.int64)
        place[np.random.default_rng(seed).permutation(len(pool))] = np.arange(len(pool))
        reasons = [f"drawn {p + 1} of {keep}" if p < keep else f"drawn {p + 1}, after {keep}" for p in place]
        return Selection(np.flatnonzero(place < keep), reasons, {"draw": place + 1}, -place)
