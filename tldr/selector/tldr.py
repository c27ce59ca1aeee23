"""TL;DR (Wang et al., ICCV 2023, section 3.2, arXiv 2305.20087): cluster the pictures by their codes, keep a share of
each cluster.

The paper draws the same share of every cluster at random, which keeps the pool's share of mismatched captions too. By
default we keep what is best *aligned* (`tldr.model.captioner`), and make repetition costly: clusters are small, and
the r-th best pair of a cluster is worth its alignment less ``redundancy`` standard deviations for each fair share
(keep / K, at least 1) of pairs before it. So a picture that is shown again must fit better than one that is new. Where
``redundancy`` is null, every cluster keeps its share, as in the paper, whatever the ``choice`` inside it.

Shapes: N pairs, K clusters.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector
from tldr.signal.feature import FEATURES, cluster
from tldr.signal.store import Signals

CHOICES = {"alignment": "alignment", "uniform": "draw", "nearest": "minus the distance to the centre"}


def quotas(sizes: np.ndarray, keep: int) -> np.ndarray:
    """(K,) how many to keep of each cluster: proportional to ``sizes``, ``keep`` in all (largest remainders)."""
    exact = sizes * (keep / sizes.sum())
    quota = np.floor(exact).astype(np.int64)
    rest = np.argsort(quota - exact, kind="stable")[: keep - quota.sum()]
    quota[rest] += 1
    return quota


def ranks(label: np.ndarray, merit: np.ndarray) -> np.ndarray:
    """(N,) each row's place inside its cluster by falling ``merit``, from 0; ties in the order of the rows."""
    order = np.lexsort((-merit, label))
    sizes = np.bincount(label)
    place = np.empty(len(label), np.int64)
    place[order] = np.arange(len(label)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place


class TLDR(Selector):
    """``clusters`` by k-means over ``feature`` (`tldr.signal.feature`), but no more than one for ``rows_per_cluster``
    pairs (the paper has 3000 for 2.8M pairs; SemDeDup 50,000 for 440M). ``choice`` inside a cluster: best
    ``alignment``, ``uniform`` draw, or ``nearest`` to the centre; ``redundancy`` (standard deviations of alignment)
    goes with ``alignment`` alone."""

    def __init__(
        self,
        *,
        clusters: int = 50_000,
        rows_per_cluster: int = 4,
        feature: str = "tokens",
        choice: str = "alignment",
        redundancy: float | None = 0.35,
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
        self.clusters, self.rows_per_cluster = clusters, rows_per_cluster
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
            order = np.lexsort((np.arange(len(pool)), -worth))
            kept = np.zeros(len(pool), bool)
            kept[order[:keep]] = True
            cut = worth[order[keep - 1]]
            verdicts = [f"worth {w:.3g}, cut at {cut:.3g}" for w in worth]
        else:
            quota = quotas(np.bincount(label, minlength=clusters), keep)[label]
            kept = place < quota
            verdicts = [f"the cluster keeps {q}" for q in quota]
        what = CHOICES[self.choice]
        reasons = [
            f"{what} {m:.3g}, place {p + 1} in cluster {c}; {verdict}"
            for m, p, c, verdict in zip(merit, place, label, verdicts, strict=True)
        ]
        return Selection(np.flatnonzero(kept), reasons, scores)
