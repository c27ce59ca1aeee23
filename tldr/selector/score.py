"""The best by a score of how well picture and caption fit.

CLIP score (Hessel et al. 2021, arXiv 2104.08718): the cosine of their embeddings, as DataComp filters by it (Gadre et
al. 2023, arXiv 2304.14108, section 5); its best share of a web pool is about 30 %, stricter cuts lose diversity. ITM
score (BLIP, Li et al. 2022, arXiv 2201.12086, section 4.2): the log-odds of a match, log p(match) - log p(no match), of
a head that sees both together. CapFilt drops log-odds below 0; here the best are kept, whatever their sign.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best
from tldr.signal.store import Signals


class Score(Selector):
    """The best by the alignment that ``scorer`` gives; reasons call it ``title``."""

    def __init__(self, *, scorer: str, title: str = "score") -> None:
        self.signal, self.title = f"{scorer}.alignment", title
        self.needs = (self.signal,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """The top ``keep``; ties in the order of the pool."""
        assert signals is not None
        score = signals[self.signal].read().astype(np.float32)
        rows, cut = best(score, keep)
        return Selection(rows, [f"{self.title} {s:.3g}, cut at {cut:.3g}" for s in score], {self.signal: score}, score)
