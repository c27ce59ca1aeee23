"""SemDeDup (Abbas et al. 2023, arXiv 2303.09540): of pictures that mean the same, one stays.

Image embeddings are clustered by spherical k-means; inside a cluster the pairs are sorted by their similarity to the
centroid, and one is a duplicate if its similarity to any before it exceeds 1 - epsilon. The source fixes epsilon and
takes what remains; here ``keep`` decides: the most similar are dropped first, and the epsilon reached follows. With a
fixed ``epsilon`` and too many pairs left, ``keep`` of them are drawn; with too few, the least similar duplicates come
back. Pairs that share a picture are duplicates of each other.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best, counts, inside, one_of
from tldr.signal.sphere import CHOICES, Duplicates, cluster_count, unit_rows
from tldr.signal.store import Signals


class SemDeDup(Selector):
    """``clusters`` at most, of ``rows_per_cluster`` pairs at least (the source: 50,000 for 440M pairs); ``choice``:
    which of a group stays, ``hard`` (least like the centroid), ``easy`` or ``random``; ``epsilon`` in cosine
    distance, or None."""

    def __init__(
        self,
        *,
        clusters: int = 50_000,
        rows_per_cluster: int = 8800,
        choice: str = "hard",
        epsilon: float | None = None,
        embedding: str = "clip.embedding",
    ) -> None:
        one_of(CHOICES, choice=choice)
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster)
        if epsilon is not None:
            inside("a cosine distance, or null", high=2, epsilon=epsilon)
        self.clusters, self.rows_per_cluster, self.choice = clusters, rows_per_cluster, choice
        self.epsilon, self.embedding = epsilon, embedding
        self.needs = (embedding,)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Find everyone's most similar predecessor, then drop the most similar."""
        assert signals is not None
        rows = unit_rows(pool, signals, self.embedding)
        clusters = cluster_count(self.clusters, len(pool), self.rows_per_cluster)
        found = Duplicates.find(rows, clusters, choice=self.choice, seed=seed)
        if self.epsilon is None:
            kept, verdict, duplicate = _by_count(found.similarity, keep)
        else:
            kept, verdict, duplicate = _by_epsilon(found.similarity, keep, self.epsilon, seed)
        uids = pool.uids.to_pylist()
        reasons = []
        for row, twin in enumerate(found.twin):
            if twin < 0:
                what = f"the first of cluster {found.cluster[row]}"
            else:
                what = f"{'duplicate of' if duplicate[row] else 'most like'} {uids[twin]}"
                what += f", similarity {found.similarity[row]:.4g}"
            reasons.append(f"{what}; {verdict[row]}")
        scores = {"cluster": found.cluster, "similarity": found.similarity}
        merit = -found.similarity if self.epsilon is None else None
        return Selection(np.flatnonzero(kept), reasons, scores, merit)


def _by_count(similarity: np.ndarray, keep: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Which pairs are kept (N,) if the most similar are dropped first, why, and which are duplicates."""
    kept = np.zeros(len(similarity), bool)
    kept[best(-similarity, keep)[0]] = True
    if kept.all():
        return kept, ["none is dropped"] * len(kept), ~kept
    cut = similarity[~kept].min()
    verdict = f"cut at {cut:.4g}, epsilon {1 - cut:.3g}" if cut >= 0 else f"{keep} are kept, fewer than are unlike"
    return kept, [verdict] * len(kept), ~kept


def _by_epsilon(
    similarity: np.ndarray, keep: int, epsilon: float, seed: int
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The same where ``epsilon`` says which pairs are duplicates."""
    duplicate = similarity > 1 - epsilon
    alone = len(similarity) - int(duplicate.sum())
    # Pairs that are not duplicates come first, in random order: their draws are at least 0, those of duplicates at most
    # -1. The draw that orders each group (`Duplicates.find`) cannot be reused: whichever pair won it would lose here.
    draw = np.where(duplicate, -2 - similarity, np.random.default_rng((seed, 1)).random(len(similarity)))
    rows, cut = best(draw, keep)
    kept = np.zeros(len(similarity), bool)
    kept[rows] = True
    told = f"epsilon {epsilon:g}"
    if keep <= alone:
        other = f"drawn, {keep} of {alone} non-duplicates" if keep < alone else "no duplicate"
        verdicts = {True: f"{told}: {other}", False: f"{told}: not drawn, {keep} of {alone} non-duplicates are"}
        return kept, [told if d else verdicts[bool(k)] for d, k in zip(duplicate, kept, strict=True)], duplicate
    back = f"{told}: taken back, as only {alone} are not duplicates and {keep} are kept; cut at {-2 - cut:.4g}"
    verdict = [f"{told}: no duplicate" if not d else back if k else told for d, k in zip(duplicate, kept, strict=True)]
    return kept, verdict, duplicate
