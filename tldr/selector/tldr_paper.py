"""TL;DR as its paper has it (Wang et al., ICCV 2023, section 3.2, arXiv 2305.20087): cluster the pictures by their
codes, keep the same share of each cluster, drawn at random. The pool's share of wrong captions stays as it is.

Shapes: N pairs, K clusters.
"""

from __future__ import annotations

import numpy as np

from tldr.cluster import proportional, ranks
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, counts, one_of
from tldr.signal.feature import cluster, signal_of
from tldr.signal.sphere import cluster_count
from tldr.signal.store import Signals

CHOICES = {"alignment": "alignment", "uniform": "draw", "nearest": "minus the distance to the centre"}


class TLDRPaper(Selector):
    """``clusters`` by k-means over ``feature`` (`tldr.signal.feature`; ``dim`` components of tokens or histogram), but
    no more than one for ``rows_per_cluster`` pairs. ``choice`` inside a cluster: a ``uniform`` draw, as in the paper,
    best ``alignment``, or ``nearest`` to the centre."""

    def __init__(
        self,
        *,
        clusters: int = 3000,
        rows_per_cluster: int = 32,
        feature: str = "tokens",
        choice: str = "uniform",
        dim: int = 64,
    ) -> None:
        one_of(CHOICES, choice=choice)
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster, dim=dim)
        self.clusters, self.rows_per_cluster = clusters, rows_per_cluster
        self.feature, self.choice, self.dim = feature, choice, dim
        aligned = ("alignment",) if choice == "alignment" else ()
        self.needs = (signal_of(feature), *aligned)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Cluster, order every cluster by ``choice``, take every cluster's share."""
        assert signals is not None
        clusters = cluster_count(self.clusters, len(pool), self.rows_per_cluster)
        signals.refuse_infinite(signal_of(self.feature), pool)
        label, squared = cluster(self.feature, signals, clusters=clusters, seed=seed, dim=self.dim)
        distance = np.sqrt(np.maximum(squared, 0))
        scores = {"cluster": label, "distance": distance}
        if self.choice == "alignment":
            scores["alignment"] = merit = signals["alignment"].read().astype(np.float32)
        elif self.choice == "nearest":
            merit = -distance
        else:
            merit = np.random.default_rng(seed).random(len(pool), dtype=np.float32)
        place = ranks(label, merit)
        quota = proportional(np.bincount(label, minlength=clusters), keep)[label]
        reasons = [
            f"{CHOICES[self.choice]} {m:.3g}, place {p + 1} in cluster {c}, which keeps {q}"
            for m, p, c, q in zip(merit, place, label, quota, strict=True)
        ]
        return Selection(np.flatnonzero(place < quota), reasons, scores)
