"""TL;DR (Wang et al., ICCV 2023, section 3.2, arXiv 2305.20087): cluster the pictures by their codes, keep a share of
each cluster.

The paper draws the same share of every cluster at random, which keeps the pool's share of mismatched captions too. By
default we keep what is best *aligned* (`tldr.model.captioner`), and make repetition costly: clusters are small, and
the r-th best pair of a cluster is worth its alignment less ``redundancy`` standard deviations for each fair share
(keep / K, at least 1) of pairs before it. So a picture that is shown again must fit better than one that is new. Where
``redundancy`` is null, every cluster keeps its share, as in the paper, whatever the ``choice`` inside it.

Summed alignment favours captions that say much. With ``length_bins`` captions compete with those of like length alone:
a control that shows how much of a gain is more than longer text.

Shapes: N pairs, K clusters.
"""

from __future__ import annotations

import numpy as np

from tldr.cluster import proportional, ranks
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector
from tldr.signal.feature import FEATURES, cluster
from tldr.signal.store import Signals

CHOICES = {"alignment": "alignment", "uniform": "draw", "nearest": "minus the distance to the centre"}


class TLDR(Selector):
    """``clusters`` by k-means over ``feature`` (`tldr.signal.feature`), but no more than one for ``rows_per_cluster``
    pairs (the paper has 3000 for 2.8M pairs; SemDeDup 50,000 for 440M). ``choice`` inside a cluster: best
    ``alignment``, ``uniform`` draw, or ``nearest`` to the centre; ``redundancy`` (standard deviations of alignment)
    goes with ``alignment`` alone, and ``length_bins``, each with as many pairs, with it."""

    def __init__(
        self,
        *,
        clusters: int = 50_000,
        rows_per_cluster: int = 4,
        feature: str = "tokens",
        choice: str = "alignment",
        redundancy: float | None = 0.35,
        length_bins: int | None = None,
        dim: int = 64,
    ) -> None:
        if choice not in CHOICES:
            raise ValueError(f"selector.choice={choice!r}; choose from {', '.join(CHOICES)}")
        if feature not in FEATURES:
            raise ValueError(f"selector.feature={feature!r}; choose from {', '.join(FEATURES)}")
        if clusters < 1 or rows_per_cluster < 1:
            raise ValueError("selector.clusters and selector.rows_per_cluster must be at least 1")
        if redundancy is not None and (choice != "alignment" or redundancy < 0):
            raise ValueError(
                f"selector.redundancy={redundancy} is a price in alignment, at least 0; "
                f"set selector.redundancy=null with selector.choice={choice}"
            )
        if length_bins is not None and (redundancy is None or length_bins < 1):
            raise ValueError(
                f"selector.length_bins={length_bins}: at least 1, and only where selector.redundancy is set"
            )
        self.clusters, self.rows_per_cluster, self.length_bins = clusters, rows_per_cluster, length_bins
        self.feature, self.choice, self.redundancy, self.dim = feature, choice, redundancy, dim
        aligned = ("alignment",) if choice == "alignment" else ()
        self.needs = ("embedding" if feature == "embedding" else "codes", *aligned)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Cluster, order every cluster by ``choice``, then take the best, or every cluster's share."""
        assert signals is not None
        clusters = max(1, min(self.clusters, len(pool) // self.rows_per_cluster))
        label, distance = cluster(self.feature, signals, clusters=clusters, seed=seed, dim=self.dim)
        scores = {"cluster": label, "distance": distance}
        if self.choice == "alignment":
            scores["alignment"] = merit = signals["alignment"].read().astype(np.float32)
        elif self.choice == "nearest":
            merit = -distance
        else:
            merit = np.random.default_rng(seed).random(len(pool), dtype=np.float32)
        place = ranks(label, merit)
        if self.redundancy is not None:
            price = self.redundancy * merit.std() / max(1.0, keep / clusters)
            scores["worth"] = worth = merit - np.float32(price) * place
            bins = self._bins(pool)
            share = proportional(np.bincount(bins), keep)
            kept = ranks(bins, worth) < share[bins]
            cut = np.array([worth[kept & (bins == each)].min(initial=np.inf) for each in range(len(share))])[bins]
            verdicts = [f"worth {w:.3g}, cut at {c:.3g}" for w, c in zip(worth, cut, strict=True)]
            if self.length_bins:
                verdicts = [f"{verdict} for captions of this length" for verdict in verdicts]
        else:
            quota = proportional(np.bincount(label, minlength=clusters), keep)[label]
            kept = place < quota
            verdicts = [f"the cluster keeps {q}" for q in quota]
        what = CHOICES[self.choice]
        reasons = [
            f"{what} {m:.3g}, place {p + 1} in cluster {c}; {verdict}"
            for m, p, c, verdict in zip(merit, place, label, verdicts, strict=True)
        ]
        return Selection(np.flatnonzero(kept), reasons, scores)

    def _bins(self, pool: Pairs) -> np.ndarray:
        """(N,) the bin of each caption by its number of words; all the same without `length_bins`."""
        if self.length_bins is None:
            return np.zeros(len(pool), np.int64)
        place = ranks(np.zeros(len(pool), np.int64), -pool.words)  # from the shortest
        return place * min(self.length_bins, len(pool)) // len(pool)
