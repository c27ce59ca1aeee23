"""ITM score (BLIP, Li et al. 2022, arXiv 2201.12086, section 4.2): keep the pairs that a matching head, which sees
picture and caption together, is surest of. CapFilt drops what it judges not to match, log-odds below 0; here the best
are kept, whatever their sign.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best
from tldr.signal.store import Signals


class ItmScore(Selector):
    """The best by the log-odds of a match, log p(match) - log p(no match), that ``scorer``'s matching head gives."""

    def __init__(self, *, scorer: str = "blip") -> None:
        self.signal = f"{scorer}.alignment"
        self.needs = (self.signal,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """The top ``keep``; ties in the order of the pool."""
        assert signals is not None
        score = signals[self.signal].read().astype(np.float32)
        rows, cut = best(score, keep)
        reasons = [f"log-odds of a match {s:.3g}, cut at {cut:.3g}" for s in score]
        return Selection(rows, reasons, {self.signal: score})
