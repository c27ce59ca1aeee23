"""TL;DR (Wang et al., ICCV 2023, section 3.2, arXiv 2305.20087): cluster the pictures by their codes, keep a share of
each.

The paper draws uniformly inside a cluster. Here the default keeps the pairs that the captioner finds best *aligned*
(see `tldr.model.captioner`), which removes mismatched captions, and counts each repetition of a picture against it:
inside a cluster the r-th best pair of a group of near-duplicates waits until round r. `choice` and `feature` give the
paper's way back.

Shapes: N pairs, K clusters.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector
from tldr.signal.feature import FEATURES, cluster
from tldr.signal.store import Signals

CHOICES = ("alignment", "uniform", "nearest")


def quotas(sizes: np.ndarray, keep: int) -> np.ndarray:
    """(K,) how many to keep of each cluster: proportional to ``sizes``, and exactly ``keep`` in all (largest
    remainders)."""
    exact = sizes * (keep / sizes.sum())
    quota = np.floor(exact).astype(np.int64)
    rest = np.argsort(quota - exact, kind="stable")[: keep - quota.sum()]
    quota[rest] += 1
    return quota


class TLDR(Selector):
    """``clusters`` by k-means over ``feature`` (`tldr.signal.feature`), lowered where the pool is small; inside each,
    the ``choice``: best ``alignment``, ``uniform`` draw, or ``nearest`` to the centre.

    ``rows_per_cluster`` is the least average size of a cluster: 3000 clusters for 2.8M pairs are the paper's; a pool
    of 16,000 has fewer."""

    def __init__(
        self,
        *,
        clusters: int = 3000,
        rows_per_cluster: int = 32,
        feature: str = "tokens",
        choice: str = "alignment",
        dim: int = 64,
    ) -> None:
        if choice not in CHOICES:
            raise ValueError(f"selector.choice={choice!r}; choose from {', '.join(CHOICES)}")
        if feature not in FEATURES:
            raise ValueError(f"selector.feature={feature!r}; choose from {', '.join(FEATURES)}")
        if clusters < 1 or rows_per_cluster < 1:
            raise ValueError("selector.clusters and selector.rows_per_cluster are at least 1")
        self.clusters, self.rows_per_cluster, self.feature, self.choice, self.dim = (
            clusters, rows_per_cluster, feature, choice, dim,
        )  # fmt: skip
        self.needs = (
            "embedding" if feature == "embedding" else "codes",
            *(["alignment"] if choice == "alignment" else []),
        )

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Cluster, then fill every cluster's quota in the order of ``choice``."""
        assert signals is not None
        count = len(pool)
        clusters = max(1, min(self.clusters, count // self.rows_per_cluster))
        label, distance = cluster(self.feature, signals, clusters=clusters, seed=seed, dim=self.dim)
        scores = {"cluster": label, "distance": distance}
        if self.choice == "alignment":
            scores["alignment"] = merit = signals["alignment"].read().astype(np.float32)
        elif self.choice == "nearest":
            merit = -distance
        else:
            merit = np.random.default_rng(seed).random(count, dtype=np.float32)
        quota = quotas(np.bincount(label, minlength=clusters), keep)
        order = np.lexsort((-merit, label))  # cluster by cluster, the best first
        first = np.searchsorted(label[order], np.arange(clusters))
        place = np.empty(count, np.int64)
        place[order] = np.arange(count) - first[label[order]]
        kept = place < quota[label]
        what = {"alignment": "alignment", "nearest": "closeness to the centre", "uniform": "draw"}[self.choice]
        reasons = [
            f"{what} {m:.3g}: place {p + 1} of the {q} kept in cluster {c}" if k else
            f"{what} {m:.3g}: place {p + 1}, cluster {c} keeps {q}"
            for m, p, q, c, k in zip(merit, place, quota[label], label, kept, strict=True)
        ]  # fmt: skip
        return Selection(np.flatnonzero(kept), reasons, scores)
