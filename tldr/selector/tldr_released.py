"""TL;DR as released (Wang et al., ICCV 2023, arXiv 2305.20087; repository showlab/datacentric.vlp), which is not what
the paper says: code ids are taken as numbers, PCA-whitened, normalised and clustered by k-means; every N-th member of a
cluster is taken, by a stride rather than a draw; of these stay the pairs of a ready-made list, the top half by BLIP's
image-text matching.

Not reproduced: the script looks up the members of a cluster by their position in its feature files, which come in
whatever order the folder lists them, and not by the index saved beside them. Run like that, a cluster's members are the
wrong pictures, and the result is a random share of the top half. Here rows and pairs correspond. Nor are codes
extracted from augmented pictures, as they are there. (docs/method.md has the rest.)

Shapes: N pairs, K clusters.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, at_least, best, counts, inside
from tldr.signal.feature import cluster
from tldr.signal.sphere import cluster_count
from tldr.signal.store import Signals


def on_stride(label: np.ndarray, stride: float) -> np.ndarray:
    """(N,) bool: the members 0, ``stride``, 2 ``stride``, ... of every cluster in the order of the rows, rounded up
    where ``stride`` is no whole number."""
    order = np.argsort(label, kind="stable")
    sizes = np.bincount(label)
    place = np.empty(len(label), np.int64)
    place[order] = np.arange(len(label)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place % stride < 1


class TLDRReleased(Selector):
    """``clusters`` by k-means over the code ids, but no more than one for ``rows_per_cluster`` pairs; of each every
    ``stride``-th pair (None: so that ``half * N / stride`` pairs are ``keep``), of these the top ``half`` of the pool
    by ``blip.alignment``. Where that is not exactly ``keep`` pairs, the worst aligned of them go, or the best aligned
    of the others come in."""

    needs = ("codes", "blip.alignment")

    def __init__(
        self, *, clusters: int = 1000, rows_per_cluster: int = 32, stride: float | None = None, half: float = 0.5
    ) -> None:
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster)
        if stride is not None:
            at_least(1, stride=stride)
        inside("what image-text matching leaves", above=True, half=half)
        self.clusters, self.rows_per_cluster, self.stride, self.half = clusters, rows_per_cluster, stride, half

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Cluster, stride, intersect, then make it exactly ``keep``."""
        assert signals is not None
        clusters = cluster_count(self.clusters, len(pool), self.rows_per_cluster)
        label, distance = cluster("raw", signals, clusters=clusters, seed=seed)
        distance = np.sqrt(np.maximum(distance, 0))  # that of tldr_paper, not its square
        itm = signals["blip.alignment"].read().astype(np.float32)
        top = np.zeros(len(pool), bool)
        rows, cut = best(itm, max(1, round(self.half * len(pool))))
        top[rows] = True
        stride = self.stride or max(1.0, self.half * len(pool) / keep)
        taken = on_stride(label, stride)
        found = taken & top
        order = np.lexsort((np.arange(len(pool)), -itm, ~found))  # those found first, and by their alignment
        kept = np.zeros(len(pool), bool)
        kept[order[:keep]] = True
        changed = {True: "; the best aligned fill up", False: "; the worst aligned are too many"}
        reasons = [
            f"{'on' if on else 'off'} the stride of {stride:.3g} in cluster {c}, itm {i:.3g}, the top half's cut at "
            f"{cut:.3g}{changed[keeps] if keeps != fit else ''}"
            for on, c, i, keeps, fit in zip(taken, label, itm, kept.tolist(), found.tolist(), strict=True)
        ]
        return Selection(np.flatnonzero(kept), reasons, {"cluster": label, "distance": distance, "blip.alignment": itm})
