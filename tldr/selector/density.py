"""Density-based pruning (Abbas et al. 2024, arXiv 2401.04578): simple concepts keep fewer pairs than complex ones.

A cluster's complexity is d_inter * d_intra, the mean cosine distance of its centroid to the ``neighbours`` nearest
ones times that of its pairs to the centroid; their softmax at temperature tau says what share of ``keep`` a cluster
should have. Some have fewer pairs than that, and none should have too few: the quotas solve the source's quadratic
programme, least squares to those shares within a minimum (half of an equal share) and the size of the cluster. Inside a
cluster the ``hard`` are kept, far from the centroid. The source deduplicates first (its 440M pairs to 277M), because
duplicates would make the densest clusters; so do we, to the share ``dedup``. If as many pairs or more are to be kept,
the clusters have nothing to decide.

Its best embedding is that of a distilled DINOv2 (ViT-L/14); ours, of pictures too, is the ``clip`` scorer's.

Shapes: N pairs, K clusters.
"""

from __future__ import annotations

import faiss
import numpy as np

from tldr.cluster import quotas, ranks
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, above_zero, best, counts, inside, one_of
from tldr.signal.sphere import CHOICES, Duplicates, Sphere, cluster_count, unit_rows
from tldr.signal.store import Signals


class Density(Selector):
    """``clusters`` at most, of ``rows_per_cluster`` pairs at least; ``temperature`` of the softmax; ``floor``: the
    least that a cluster keeps, as a share of the equal part; ``choice`` inside a cluster; ``dedup``: the share that
    SemDeDup keeps beforehand (clusters of ``dedup_rows_per_cluster``), None for none."""

    def __init__(
        self,
        *,
        clusters: int = 500,
        rows_per_cluster: int = 128,
        temperature: float = 0.5,
        neighbours: int = 20,
        floor: float = 0.5,
        choice: str = "hard",
        dedup: float | None = 0.63,
        dedup_rows_per_cluster: int = 8800,
        embedding: str = "clip.embedding",
    ) -> None:
        one_of(CHOICES, choice=choice)
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster, neighbours=neighbours)
        counts(1, dedup_rows_per_cluster=dedup_rows_per_cluster)
        above_zero(temperature=temperature)
        inside("a share of the equal part", floor=floor)
        if dedup is not None:
            inside("the share kept by SemDeDup, or null for none", above=True, dedup=dedup)
        self.clusters, self.rows_per_cluster, self.temperature = clusters, rows_per_cluster, temperature
        self.neighbours, self.floor, self.choice = neighbours, floor, choice
        self.dedup, self.dedup_rows_per_cluster, self.embedding = dedup, dedup_rows_per_cluster, embedding
        self.needs = (embedding,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Deduplicate, cluster, share ``keep`` out, and fill every cluster's quota."""
        assert signals is not None
        rows = unit_rows(pool, signals, self.embedding)
        scores, twin, left = {}, None, np.arange(len(pool))
        if self.dedup is not None:
            among = max(1, len(pool) // self.dedup_rows_per_cluster)
            found = Duplicates.find(rows, among, choice=self.choice, seed=seed)
            left = best(-found.similarity, max(keep, round(self.dedup * len(pool))))[0]
            scores["similarity"], twin = found.similarity, found.twin
        sphere = Sphere.fit(rows, cluster_count(self.clusters, len(left), self.rows_per_cluster), seed=seed, of=left)
        label, distance = sphere.label[left], np.maximum(1 - sphere.similarity, 0)
        quota, complexity = self.share(label, distance[left], sphere.centroids, keep)
        merit = {
            "hard": distance[left],
            "easy": -distance[left],
            "random": np.random.default_rng(seed).random(len(left)),
        }[self.choice]
        place, sizes = ranks(label, merit), np.bincount(label)

        cluster = np.full(len(pool), -1)
        cluster[left] = label
        reasons = [""] * len(pool)
        for row, c, p in zip(left, label, place, strict=True):
            reasons[row] = (
                f"{distance[row]:.3g} from the centre, place {p + 1} of the {self.choice} in cluster {c}, which keeps "
                f"{quota[c]} of {sizes[c]} for its complexity {complexity[c]:.3g}"
            )
        if twin is not None:
            uids = pool.uids.to_pylist()
            for row in np.setdiff1d(np.arange(len(pool)), left):
                what = f"duplicate of {uids[twin[row]]}" if twin[row] >= 0 else "dropped with the duplicates"
                reasons[row] = f"{what}, similarity {scores['similarity'][row]:.4g}"
        return Selection(left[place < quota[label]], reasons, {"cluster": cluster, "distance": distance, **scores})

    def share(
        self, label: np.ndarray, distance: np.ndarray, centroids: np.ndarray, keep: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The quotas (K,) of the clusters and their complexity (K,), from the pairs' ``label``, cosine ``distance`` to
        the centre and the unit ``centroids`` (K, E). A cluster without pairs has a quota of 0."""
        sizes = np.bincount(label, minlength=len(centroids))
        filled = np.flatnonzero(sizes)
        intra = np.bincount(label, distance, len(centroids))[filled] / sizes[filled]
        near = min(self.neighbours, len(filled) - 1)
        inter = np.ones(len(filled))
        if near:
            cosine, _ = faiss.knn(centroids[filled], centroids[filled], near + 1, faiss.METRIC_INNER_PRODUCT)
            inter = 1 - cosine[:, 1:].mean(1, dtype=np.float64)  # the first is itself
        complexity = np.zeros(len(centroids))
        complexity[filled] = inter * intra
        heat = (complexity[filled] - complexity.max()) / self.temperature
        wanted = keep * np.exp(heat) / np.exp(heat).sum()
        least = int(keep / len(filled) * self.floor) if self.floor else 1
        low = np.minimum(least, sizes[filled])
        if low.sum() > keep:  # fewer are kept than there are clusters
            low = np.zeros_like(low)
        quota = np.zeros(len(centroids), np.int64)
        quota[filled] = quotas(wanted, low, sizes[filled], keep)
        return quota, complexity
