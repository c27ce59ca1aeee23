"""From codes to vectors that can be clustered.

    tokens     the code vectors of all positions, flat, then PCA: keeps what is where (the default: renderings of one
               scene stay together far more often than by any other of these)
    mean       the mean code vector: what, not where
    histogram  how often each code occurs (square roots, so that Euclidean distance is Hellinger's), then PCA
    raw        the code ids as numbers, PCA-whitened and normalised, as the released TL;DR script does. Ids are nominal:
               distances between them mean nothing; it is here to be compared with
    embedding  the scorer's embedding, for scorers without codebook

Shapes: N pairs, L tokens, K codes, D width, d components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tldr.cluster import PCA, POINTS_PER_CENTROID, KMeans
from tldr.signal.store import Signals, gathered

FEATURES = ("tokens", "mean", "histogram", "raw", "embedding")
_FLAT = 2048  # widest flat vector that PCA learns from
_BLOCK = 16_384  # rows that are flat at once
_FEW = 256  # rows of which all code vectors are there at once


def signal_of(feature: str) -> str:
    """The signal that a feature is made of. Raises ValueError for one that there is not."""
    if feature not in FEATURES:
        raise ValueError(f"selector.feature={feature!r}; choose from {', '.join(FEATURES)}")
    return "embedding" if feature == "embedding" else "codes"


class Feature:
    """A feature fitted to a sample of rows; `chunks` then gives (n, d) float32 for the whole pool, part by part."""

    def __init__(self, kind: str, signals: Signals, sample: np.ndarray, *, dim: int = 64) -> None:
        self.signal = signals[signal_of(kind)]
        self._raw = self._vectors(kind, signals, dim)
        self._pca = None
        if kind not in ("mean", "embedding"):
            self._pca = PCA.fit(self._raw(self.signal.read(sample)), 256 if kind == "raw" else dim)
        self._whiten = kind == "raw"

    def _vectors(self, kind: str, signals: Signals, dim: int) -> Callable[[np.ndarray], np.ndarray]:
        if kind in ("embedding", "raw"):
            return lambda values: np.asarray(values, dtype=np.float32)
        codebook = signals.constant("codebook")  # (K, D)
        if kind == "mean":
            return lambda codes: _mean(codes, codebook)
        if kind == "histogram":
            return lambda codes: _histogram(codes, len(codebook))
        # 196 tokens of width 768 are too wide to be decorrelated at once: shorten the codes first, by their own PCA.
        short = max(2, min(codebook.shape[1], _FLAT // self.signal.shape[1]))
        if short < codebook.shape[1]:
            codebook = PCA.fit(codebook, short)(codebook)
        return lambda codes: codebook[codes].reshape(len(codes), -1)  # (n, L*D)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n, L) codes or (n, D) embeddings -> (n, d) float32."""
        rows = self._raw(values)
        if self._pca is not None:
            rows = self._pca(rows)
        if self._whiten and self._pca is not None:
            rows = rows / np.sqrt(self._pca.variance + 1e-6)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-12
        return np.ascontiguousarray(rows, dtype=np.float32)

    def chunks(self) -> Iterator[np.ndarray]:
        """The feature of every row of the pool, part by part."""
        for chunk in self.signal.chunks():
            yield self(chunk)


def _mean(codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """(n, D), few rows at a time: all tokens of a part of the pool would be gigabytes."""
    blocks = np.split(codes, range(_FEW, len(codes), _FEW))
    return np.concatenate([codebook[block].mean(1) for block in blocks])


def _histogram(codes: np.ndarray, size: int) -> np.ndarray:
    counts = np.zeros((len(codes), size), np.float32)
    np.add.at(counts, (np.arange(len(codes))[:, None], codes), 1)
    return np.sqrt(counts / codes.shape[1])


def sampled(count: int, size: int = 0, *, seed: int) -> np.ndarray:
    """``size`` sorted rows of ``count``, drawn from ``seed``; at least 20,000, where there are as many."""
    size = min(count, max(size, 20_000))
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))


def cluster(
    feature: str, signals: Signals, *, clusters: int, seed: int, dim: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """k-means over ``feature``: the cluster of every row (N,) int64 and its squared distance to the centre (N,).

    Learned on at most `POINTS_PER_CENTROID` rows a cluster (drawn from ``seed``), assigned part by part.
    """
    count = len(signals[signal_of(feature)])
    fitted = Feature(feature, signals, sampled(count, seed=seed), dim=dim)
    sample = sampled(count, POINTS_PER_CENTROID * clusters, seed=seed)
    values = fitted.signal.read(sample)
    blocks = (fitted(values[start : start + _BLOCK]) for start in range(0, len(values), _BLOCK))
    kmeans = KMeans.fit(gathered(blocks, len(values)), clusters, seed=seed)
    assigned = [kmeans.assign(chunk) for chunk in fitted.chunks()]
    return np.concatenate([c for c, _ in assigned]), np.concatenate([d for _, d in assigned])
