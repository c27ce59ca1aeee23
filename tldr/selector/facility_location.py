"""Facility location: the kept pairs stand for all, each for those that are like it.

F(S) = sum over all pairs i of the highest similarity of i to one in S (Lin & Bilmes 2011; Wei, Iyer & Bilmes 2015). It
is monotone and submodular: greedy choice reaches 1 - 1/e of the best. Similarities are cosines between embeddings, and
only those to a pair's nearest ``neighbours`` (in either direction) count, so that the graph has N * neighbours edges.
Greedy is lazy (Minoux 1978): gains only fall, and one is computed again only when it comes to the top. A pair is fully
like itself, so one that nothing covers is worth at least 1.

While the graph is made it takes 140 bytes an edge: 4.5 KB a pair with 32 neighbours, 45 GB for ten million.

Shapes: N pairs, M edges.
"""

from __future__ import annotations

import heapq

import faiss
import numpy as np

from tldr.cluster import faiss_seed
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, counts
from tldr.signal.sphere import unit_rows
from tldr.signal.store import Signals

EXACT = 20_000  # pairs among which all are compared; in larger pools those of the nearest cells of an inverted index
PROBES = 16


class FacilityLocation(Selector):
    """Over the graph of the nearest ``neighbours`` by ``embedding``."""

    def __init__(self, *, neighbours: int = 32, embedding: str = "clip.embedding") -> None:
        counts(1, neighbours=neighbours)
        self.neighbours, self.embedding = neighbours, embedding
        self.needs = (embedding,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Build the graph, then pick by the largest gain."""
        assert signals is not None
        rows = unit_rows(pool, signals, self.embedding)
        starts, ends, similarity = graph(rows, min(self.neighbours, len(rows) - 1), seed=seed)
        picks, gains = lazy_greedy(starts, ends, similarity, keep)
        pick, gain = np.full(len(pool), -1), np.zeros(len(pool))
        pick[picks], gain[picks] = np.arange(keep), gains
        covered, by = _cover(starts, ends, similarity, pick >= 0)
        uids = pool.uids.to_pylist()
        reasons = []
        for row in range(len(pool)):
            if pick[row] >= 0:
                reasons.append(f"pick {pick[row] + 1} of {keep}, gain {gain[row]:.3g}")
            elif by[row] >= 0:
                reasons.append(f"covered by {uids[by[row]]}, similarity {covered[row]:.3g}; least gain {gains[-1]:.3g}")
            else:
                reasons.append(f"not among {keep}, and covered by none; least gain {gains[-1]:.3g}")
        return Selection(np.sort(picks), reasons, {"gain": gain, "covered": covered})


def graph(rows: np.ndarray, neighbours: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who is near whom among (N, E) unit ``rows``: the edges of row i are ``starts[i]`` to ``starts[i + 1]`` of
    ``ends`` (M,) and ``similarity`` (M,), itself among them. Symmetric; similarities above 0."""
    count = len(rows)
    if count <= EXACT:
        cosine, near = faiss.knn(rows, rows, neighbours + 1, faiss.METRIC_INNER_PRODUCT)
    else:
        width, cells = rows.shape[1], int(count**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.spherical, index.nprobe = faiss_seed(seed), True, PROBES
        index.train(rows)
        index.add(rows)
        cosine, near = index.search(rows, neighbours + 1)
    row = np.repeat(np.arange(count), neighbours + 1)
    near, cosine = near.ravel().astype(np.int64), np.minimum(cosine.ravel(), 1)
    real = (near >= 0) & (near != row) & (cosine > 0)
    row, near, cosine = row[real], near[real], cosine[real]
    one, other = np.concatenate([row, near]), np.concatenate([near, row])
    key, first = np.unique(one * count + other, return_index=True)
    cosine = np.concatenate([cosine, cosine])[first]
    key = np.concatenate([key, np.arange(count) * (count + 1)])
    cosine = np.concatenate([cosine, np.ones(count, np.float32)])
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.searchsorted(key, np.arange(count + 1) * count)
    return starts, key % count, cosine[order]


def lazy_greedy(
    starts: np.ndarray, ends: np.ndarray, similarity: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` rows of largest gain, in the order picked, and those gains; ties in the order of the rows."""
    covered = np.zeros(len(starts) - 1, np.float32)
    begin = starts.tolist()
    heap = [(-gain, row) for row, gain in enumerate(np.add.reduceat(similarity, starts[:-1]).tolist())]
    heapq.heapify(heap)
    picks, gains = np.empty(count, np.int64), np.empty(count)
    for number in range(count):
        while True:
            _, row = heapq.heappop(heap)
            edges = slice(begin[row], begin[row + 1])
            near, like = ends[edges], similarity[edges]
            gain = float(np.maximum(like - covered[near], 0).sum())
            if not heap or (-gain, row) <= heap[0]:
                break
            heapq.heappush(heap, (-gain, row))
        covered[near] = np.maximum(covered[near], like)
        picks[number], gains[number] = row, gain
    return picks, gains


def _cover(
    starts: np.ndarray, ends: np.ndarray, similarity: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The highest similarity (N,) of each row to a kept one, and which that is (N,); 0 and -1 where there is none."""
    row = np.repeat(np.arange(len(kept)), np.diff(starts))
    seen = kept[ends]
    row, by, cosine = row[seen], ends[seen], similarity[seen]
    order = np.lexsort((by, -cosine, row))
    found, first = np.unique(row[order], return_index=True)
    covered, who = np.zeros(len(kept), np.float32), np.full(len(kept), -1)
    covered[found], who[found] = cosine[order[first]], by[order[first]]
    return covered, who
