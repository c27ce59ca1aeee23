"""Clustering at the scale of web data: principal components and k-means (faiss), learned on a sample, applied in
chunks; how many to take of each cluster, and places inside it.

Shapes: N rows, D their width, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

POINTS_PER_CENTROID = 256  # what k-means learns from; more changes centroids little and costs linearly


@dataclass(frozen=True)
class PCA:
    """Principal components: ``mean`` (D,), ``components`` (d, D), sorted by variance, and that ``variance`` (d,)."""

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray

    @classmethod
    def fit(cls, sample: np.ndarray, dim: int) -> PCA:
        """The first ``dim`` components of (n, D) ``sample``; fewer where it has fewer."""
        mean = sample.mean(0, dtype=np.float64)
        centred = sample.astype(np.float64) - mean
        variance, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(sample) - 1))
        dim = min(dim, len(sample), sample.shape[1])
        components = vectors[:, ::-1][:, :dim].T
        # An eigenvector's sign is arbitrary: make the largest entry positive, so that every machine says the same.
        sign = np.sign(components[np.arange(dim), np.abs(components).argmax(1)])
        components = components * sign[:, None]
        kept = np.maximum(variance[::-1][:dim], 0)
        return cls(mean.astype(np.float32), components.astype(np.float32), kept.astype(np.float32))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) -> (n, d) float32."""
        return (rows.astype(np.float32) - self.mean) @ self.components.T


@dataclass(frozen=True)
class KMeans:
    """``centroids`` (K, D) float32."""

    centroids: np.ndarray

    @classmethod
    def fit(
        cls, sample: np.ndarray, clusters: int, *, seed: int, iterations: int = 20, spherical: bool = False
    ) -> KMeans:
        """Lloyd's algorithm on (n, D) ``sample``; ``spherical`` keeps the centroids on the unit sphere. Raises
        ValueError for more clusters than rows, or for values that are not finite."""
        if clusters > len(sample):
            raise ValueError(f"{clusters} clusters asked of {len(sample)} rows")
        sample = np.ascontiguousarray(sample, dtype=np.float32)
        if not np.isfinite(sample).all():
            raise ValueError("the features to cluster hold NaN or infinite values")
        kmeans = faiss.Kmeans(
            sample.shape[1],
            clusters,
            niter=iterations,
            seed=faiss_seed(seed),
            spherical=spherical,
            min_points_per_centroid=1,  # small pools are legitimate: no warning
            max_points_per_centroid=POINTS_PER_CENTROID,
        )
        kmeans.train(sample)
        return cls(np.asarray(kmeans.centroids))

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, D) -> the nearest centroid (n,) int64 and the squared distance to it (n,) float32."""
        distance, cluster = faiss.knn(np.ascontiguousarray(rows, dtype=np.float32), self.centroids, 1)
        return cluster[:, 0], np.maximum(distance[:, 0], 0)


def faiss_seed(seed: int) -> int:
    """What faiss is given for a seed below 2**32: a C int, and not 0, which it reads as 'the default seed'."""
    return (seed + 1) % 2**31 or 1


def proportional(sizes: np.ndarray, keep: int) -> np.ndarray:
    """(K,) how many to keep of each cluster: proportional to ``sizes``, ``keep`` in all (largest remainders)."""
    exact = sizes * (keep / sizes.sum())
    quota = np.floor(exact).astype(np.int64)
    rest = np.argsort(quota - exact, kind="stable")[: keep - quota.sum()]
    quota[rest] += 1
    return quota


def quotas(wanted: np.ndarray, low: np.ndarray, high: np.ndarray, total: int) -> np.ndarray:
    """(K,) whole numbers between ``low`` and ``high``, ``total`` in all, as near to ``wanted`` (K,) as can be.

    The least squares solution is ``wanted`` plus one constant, clipped at the bounds: water poured until it holds
    ``total``. What is left by rounding down goes to the largest remainders. Raises ValueError where the bounds exclude
    ``total``.
    """
    if not low.sum() <= total <= high.sum():
        raise ValueError(f"{total} lies outside the bounds, {low.sum()} to {high.sum()}")
    below, above = float((low - wanted).min()), float((high - wanted).max())
    for _ in range(100):  # halvings: to the last bit of a double
        level = (below + above) / 2
        if np.clip(wanted + level, low, high).sum() < total:
            below = level
        else:
            above = level
    exact = np.clip(wanted + above, low, high)
    quota = np.floor(exact + 1e-9).astype(np.int64)
    rest = total - int(quota.sum())
    order = np.argsort(quota - exact, kind="stable")
    quota[order[quota[order] < high[order]][:rest]] += 1
    return quota


def ranks(label: np.ndarray, merit: np.ndarray) -> np.ndarray:
    """(N,) each row's place inside its cluster by falling ``merit``, from 0; ties in the order of the rows."""
    order = np.lexsort((-merit, label))
    sizes = np.bincount(label)
    place = np.empty(len(label), np.int64)
    place[order] = np.arange(len(label)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place
