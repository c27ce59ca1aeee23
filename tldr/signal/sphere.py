"""Embeddings on the unit sphere, their clusters by spherical k-means, and which of them are near duplicates.

Near duplicates as in SemDeDup (Abbas et al. 2023, arXiv 2303.09540, section 3): inside every cluster the pairs stand
in a row, and each is compared with those before it. The embeddings are held in memory, 4 bytes a number.

Shapes: N pairs, E width of the embedding, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tldr.cluster import POINTS_PER_CENTROID, KMeans
from tldr.pairs import Pairs
from tldr.signal.store import Signal, Signals, gathered

CHOICES = ("hard", "easy", "random")
DENSE = 8192  # rows whose similarities are held at once, 256 MiB; above, they are computed as they are asked for
_BLOCK = 2048  # rows compared with as many others, or computed with, at once


def unit(rows: np.ndarray) -> np.ndarray:
    """(n, E) -> (n, E) float32 of length 1; a row of zeros stays one."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def in_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """(n, E) -> views of consecutive rows, so that what is computed of them is never there for all at once."""
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def unit_rows(pool: Pairs, signals: Signals, name: str) -> np.ndarray:
    """(N, E) float32: the signal ``name`` on the unit sphere. Raises ValueError with the uids of values that are not
    finite."""
    return on_sphere(pool, signals[name].chunks(), name)


def on_sphere(pool: Pairs, chunks: Iterable[np.ndarray], name: str) -> np.ndarray:
    """Like `unit_rows`, from consecutive ``chunks`` (n, E); ``name`` is what an error calls them."""
    with np.errstate(invalid="ignore"):
        rows = gathered(map(unit, chunks), len(pool))
    pool.refuse_infinite(name, np.isfinite(rows.sum(1)))
    return rows


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) of the rows of two (n, E) unit arrays, pair by pair."""
    return np.concatenate([(a * b).sum(1) for a, b in zip(in_blocks(one), in_blocks(other), strict=True)])


def cluster_count(clusters: int, pairs: int, rows_per_cluster: int) -> int:
    """``clusters``, but at most one for every ``rows_per_cluster`` of the ``pairs``; a line is printed if that lowers
    it."""
    most = max(1, pairs // rows_per_cluster)
    if most < clusters:
        print(f"selector.clusters={clusters} is lowered to {most}, one for {rows_per_cluster} of {pairs} pairs")
    return min(clusters, most)


@dataclass(frozen=True)
class Sphere:
    """``label`` (N,) int64, the cosine ``similarity`` (N,) to the centroid, and the ``centroids`` (K, E)."""

    label: np.ndarray
    similarity: np.ndarray
    centroids: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray, clusters: int, *, seed: int, of: np.ndarray | None = None) -> Sphere:
        """Spherical k-means of (N, E) unit ``rows``, learned on a sample of them, or of the rows ``of`` only, if given;
        all rows are assigned."""
        learn = np.arange(len(rows)) if of is None else of
        size = min(len(learn), POINTS_PER_CENTROID * clusters)
        sample = np.sort(np.random.default_rng(seed).choice(learn, size, replace=False))
        kmeans = KMeans.fit(rows[sample], min(clusters, size), seed=seed, spherical=True)
        label, distance = kmeans.assign(rows)
        return cls(label, 1 - distance / 2, kmeans.centroids)

    def members(self) -> list[np.ndarray]:
        """The sorted rows of each of the K clusters."""
        order = np.argsort(self.label, kind="stable")
        sizes = np.bincount(self.label, minlength=len(self.centroids))
        return np.split(order, np.cumsum(sizes)[:-1])


def similarities(rows: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function of i: the cosine similarity (n,) of all (n, E) unit ``rows`` to the i-th."""
    if len(rows) <= DENSE:
        return (rows @ rows.T).__getitem__
    return lambda i: rows @ rows[i]


@dataclass(frozen=True)
class Duplicates:
    """For every pair: its ``cluster``, the highest cosine ``similarity`` (N,) to one before it in the cluster (-1: it
    is the first), and the row of that one, ``twin`` (N,) (-1)."""

    cluster: np.ndarray
    similarity: np.ndarray
    twin: np.ndarray

    @classmethod
    def find(cls, rows: np.ndarray, clusters: int, *, choice: str | np.ndarray, seed: int) -> Duplicates:
        """Find them among (N, E) unit ``rows``. ``choice`` says which pairs of a cluster come first, and so may stay:
        ``hard``, least like the centroid; ``easy``, most like it; ``random``; or those of the highest merit, given as
        an array (N,). A pair that is dropped can still make others duplicates, as in the source."""
        sphere = Sphere.fit(rows, clusters, seed=seed)
        if isinstance(choice, str):
            orders = {
                "hard": sphere.similarity,
                "easy": -sphere.similarity,
                "random": np.random.default_rng(seed).random(len(rows)),
            }
            order = orders[choice]
        else:
            order = -choice
        similarity, twin = np.full(len(rows), -1, np.float32), np.full(len(rows), -1)
        for members in sphere.members():
            line = members[np.argsort(order[members], kind="stable")]
            for start in range(0, len(line), _BLOCK):
                for before in range(0, start + 1, _BLOCK):
                    _compare(rows, line[start : start + _BLOCK], line[before : before + _BLOCK], similarity, twin)
        return cls(sphere.label, similarity, twin)


def _compare(
    rows: np.ndarray, later: np.ndarray, earlier: np.ndarray, similarity: np.ndarray, twin: np.ndarray
) -> None:
    """Note in ``similarity`` and ``twin`` where a row of ``later`` is most like one of ``earlier``."""
    cosine = rows[later] @ rows[earlier].T
    if later[0] == earlier[0]:  # the same block: only what stands before counts
        cosine[~np.tri(len(later), k=-1, dtype=bool)] = -1
    most = cosine.argmax(1)
    value = np.minimum(cosine[np.arange(len(later)), most], 1)
    closer = value > similarity[later]
    similarity[later[closer]], twin[later[closer]] = value[closer], earlier[most[closer]]


def nearest(signal: Signal, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) for each of ``rows`` (n, E), the row of ``signal`` (N, E) with which it has the highest cosine, and that
    cosine; the first of equals. A row of zeros has 0 with all."""
    rows, start = unit(rows), 0
    found, cosines = np.zeros(len(rows), np.int64), np.full(len(rows), -np.inf, np.float32)
    for chunk in signal.chunks():
        scores = rows @ unit(chunk).T
        best = scores.argmax(1)
        reached = scores[np.arange(len(rows)), best]
        found, cosines = np.where(reached > cosines, start + best, found), np.maximum(cosines, reached)
        start += len(chunk)
    return found, cosines
