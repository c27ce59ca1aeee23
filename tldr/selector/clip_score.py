"""CLIP score (Hessel et al. 2021, arXiv 2104.08718), as DataComp filters by it (Gadre et al. 2023, arXiv 2304.14108,
section 5): keep the pairs whose picture and caption have the most similar embeddings. DataComp's best share of a web
pool is about 30 %; stricter cuts lose diversity.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best
from tldr.signal.store import Signals


class ClipScore(Selector):
    """The best by the cosine similarity that the dual encoder ``scorer`` gives."""

    def __init__(self, *, scorer: str = "clip") -> None:
        self.signal = f"{scorer}.alignment"
        self.needs = (self.signal,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """The top ``keep``; ties in the order of the pool."""
        assert signals is not None
        score = signals[self.signal].read().astype(np.float32)
        rows, cut = best(score, keep)
        return Selection(rows, [f"CLIP score {s:.3g}, cut at {cut:.3g}" for s in score], {self.signal: score})
