"""k-center (Sener & Savarese 2018, arXiv 1708.00489, algorithm 1): keep pairs so that every other has one close by.

Farthest-first: the next pair kept is the one farthest from all pairs kept so far. In Euclidean distance, which gives
the same order, the radius is at most twice the best possible, in cosine distance four times; inside one part. Over N
pairs that costs N * keep comparisons, so pools of more than ``rows_per_cluster`` pairs are divided by k-means, and the
search runs in every part, from its most central pair to its last. The distance at which a pair is picked, its radius,
only falls; the ``keep`` pairs with the largest radii of all parts are kept, so that all parts are covered to the same
radius and wide ones get more. That a pair may also cover others across the border of its part is not considered.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best, counts
from tldr.signal.sphere import Sphere, similarities, unit_rows
from tldr.signal.store import Signals

FIRST = 2.0  # the radius of the pair a search begins with: the greatest cosine distance there is
EQUAL = 1e-6  # a distance that rounding makes


class KCenter(Selector):
    """Distances are cosine over ``embedding``; parts have ``rows_per_cluster`` pairs on average, small pools one
    part."""

    def __init__(self, *, rows_per_cluster: int = 2000, embedding: str = "clip.embedding") -> None:
        counts(1, rows_per_cluster=rows_per_cluster)
        self.rows_per_cluster, self.embedding = rows_per_cluster, embedding
        self.needs = (embedding,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Order every part farthest first, then keep the largest radii."""
        assert signals is not None
        rows = unit_rows(pool, signals, self.embedding)
        # No more parts than pairs to keep: each begins with one.
        sphere = Sphere.fit(rows, max(1, min(len(pool) // self.rows_per_cluster, keep)), seed=seed)
        radius, place = np.empty(len(pool), np.float32), np.empty(len(pool), np.int64)
        for members in sphere.members():
            if len(members):
                first = int(sphere.similarity[members].argmax())
                radius[members], place[members] = farthest_first(rows[members], first)
        chosen, cut = best(radius, keep)
        reasons = [
            f"the centre of cluster {c}, where its search begins"
            if p == 0
            else f"{r:.3g} from the nearest picked before, pick {p + 1} in cluster {c}; cut at {cut:.3g}"
            for r, p, c in zip(radius, place, sphere.label, strict=True)
        ]
        return Selection(chosen, reasons, {"cluster": sphere.label, "radius": radius})


def farthest_first(rows: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """For (n, E) unit ``rows``, starting with ``first``: each row's cosine distance (n,) to those picked before it, and
    its place (n,) among the picks. Ties, and rows equal to one picked before, keep the order of the rows: there may be
    very many, and no clustering can separate them."""
    column = similarities(rows)
    radius, place = np.zeros(len(rows), np.float32), np.empty(len(rows), np.int64)
    near = np.full(len(rows), -2, np.float32)  # the cosine to the nearest picked
    pick, far, number = first, FIRST, 0
    while far > EQUAL:
        radius[pick], place[pick] = far, number
        np.maximum(near, column(pick), out=near)
        near[pick] = np.inf
        pick, number = int(near.argmin()), number + 1
        far = min(far, max(0.0, 1 - float(near[pick])))
    left = np.flatnonzero(near != np.inf)
    place[left] = np.arange(number, len(rows))
    return radius, place
