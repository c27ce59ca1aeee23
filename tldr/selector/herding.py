"""Herding (Welling 2009): the kept pairs have the mean of all.

With mean mu, the next pair kept is the x that maximises <w, x>; then w grows by mu - x, starting from w = mu. This
makes up for the drift of the pairs kept so far, and their mean approaches mu as 1 / n, faster than that of a random
draw. Without replacement, as in iCaRL (Rebuffi et al. 2017). Over N pairs it costs N * keep products, so pools of more
than ``rows_per_cluster`` pairs are divided by k-means; every part keeps its share and matches its own mean, and
together they match the pool's. Equal pictures cannot be divided: 40,000 in one part took 8 s, ten times as many would
take a hundred times as long (deduplicate first: ``selector=chain selector.steps=[semdedup,herding]``).

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.cluster import proportional
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, counts
from tldr.signal.sphere import Sphere, similarities, unit_rows
from tldr.signal.store import Signals


class Herding(Selector):
    """Means over the unit vectors of ``embedding``; parts have ``rows_per_cluster`` pairs on average, small pools
    one."""

    def __init__(self, *, rows_per_cluster: int = 2000, embedding: str = "clip.embedding") -> None:
        counts(1, rows_per_cluster=rows_per_cluster)
        self.rows_per_cluster, self.embedding = rows_per_cluster, embedding
        self.needs = (embedding,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Herd every part until its share is reached."""
        assert signals is not None
        rows = unit_rows(pool, signals, self.embedding)
        sphere = Sphere.fit(rows, max(1, len(pool) // self.rows_per_cluster), seed=seed)
        parts = sphere.members()
        sizes = np.array([len(members) for members in parts])
        share = proportional(sizes, keep)
        pick, gap = np.full(len(pool), -1), np.zeros(len(pool))
        for members, size in zip(parts, share, strict=True):
            order, gaps = herd(rows[members], int(size))
            pick[members[order]], gap[members[order]] = np.arange(size), gaps
        reasons = [
            f"pick {p + 1} of {share[c]} in cluster {c}, after which the means are {g:.3g} apart"
            if p >= 0
            else f"not among the {share[c]} of {sizes[c]} that match the mean of cluster {c}, similarity to it {s:.3g}"
            for p, g, c, s in zip(pick, gap, sphere.label, sphere.similarity, strict=True)
        ]
        return Selection(np.flatnonzero(pick >= 0), reasons, {"cluster": sphere.label, "pick": pick + 1})


def herd(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of (n, E) unit ``rows`` the ``count`` that herding picks, in order, and the distance between the mean of all and
    that of those picked after each pick. Ties in the order of the rows."""
    order, gaps = np.empty(count, np.int64), np.empty(count)
    if not count:
        return order, gaps
    column = similarities(rows)
    mean = rows.mean(0, dtype=np.float64)
    to_mean = rows @ mean
    drift = to_mean.copy()  # <w, x> of every row
    free, total = np.ones(len(rows), bool), np.zeros(rows.shape[1])
    for number in range(count):
        best = int(np.where(free, drift, -np.inf).argmax())
        free[best] = False
        drift += to_mean - column(best)
        total += rows[best]
        order[number], gaps[number] = best, np.linalg.norm(total / (number + 1) - mean)
    return order, gaps
