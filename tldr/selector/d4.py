"""D4 (Tirumala et al. 2023, arXiv 2308.12284): duplicates go, then the most ordinary of what is left.

SemDeDup (`tldr.selector.semdedup`) keeps the share ``dedup`` of the pool (R_dedup = 0.75). What it leaves is clustered
anew, since duplicates had made clusters of their own, and those nearest their centroid are discarded (prototype
pruning, Sorscher et al. 2022) until ``keep`` remain: R = R_dedup * R_proto. Where ``keep`` is more than R_dedup of the
pool, only duplicates go. The source selects documents; here the embeddings are those of pictures.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best, counts, inside, one_of
from tldr.signal.sphere import CHOICES, Duplicates, Sphere, cluster_count, unit_rows
from tldr.signal.store import Signals


class D4(Selector):
    """``dedup``: the share that the first step keeps, over clusters of ``dedup_rows_per_cluster`` pairs, of a group
    the ``choice``; ``clusters`` at most, of ``rows_per_cluster`` pairs at least, for the second."""

    def __init__(
        self,
        *,
        dedup: float = 0.75,
        choice: str = "hard",
        dedup_rows_per_cluster: int = 8800,
        clusters: int = 11_000,
        rows_per_cluster: int = 128,
        embedding: str = "clip.embedding",
    ) -> None:
        inside("the share kept by SemDeDup", above=True, dedup=dedup)
        one_of(CHOICES, choice=choice)
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster, dedup_rows_per_cluster=dedup_rows_per_cluster)
        self.dedup, self.choice, self.dedup_rows_per_cluster = dedup, choice, dedup_rows_per_cluster
        self.clusters, self.rows_per_cluster, self.embedding = clusters, rows_per_cluster, embedding
        self.needs = (embedding,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Drop the most similar, cluster the others, drop the nearest to their centroids."""
        assert signals is not None
        rows = unit_rows(pool, signals, self.embedding)
        among = max(1, len(pool) // self.dedup_rows_per_cluster)
        found = Duplicates.find(rows, among, choice=self.choice, seed=seed)
        left = best(-found.similarity, max(keep, round(self.dedup * len(pool))))[0]
        unlike = np.zeros(len(pool), bool)
        unlike[left] = True
        sphere = Sphere.fit(rows, cluster_count(self.clusters, len(left), self.rows_per_cluster), seed=seed, of=left)
        distance = np.maximum(1 - sphere.similarity, 0)
        chosen, cut = best(np.where(unlike, distance, -1), keep)
        cluster = np.where(unlike, sphere.label, -1)
        uids = pool.uids.to_pylist()
        reasons = []
        for row in range(len(pool)):
            if not unlike[row]:
                twin = found.twin[row]
                what = f"duplicate of {uids[twin]}" if twin >= 0 else "dropped with the duplicates"
                reasons.append(f"{what}, similarity {found.similarity[row]:.4g}")
            else:
                reasons.append(f"{distance[row]:.3g} from the centre of cluster {cluster[row]}, cut at {cut:.3g}")
        return Selection(chosen, reasons, {"cluster": cluster, "similarity": found.similarity, "distance": distance})
