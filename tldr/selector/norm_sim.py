"""NormSim (Wang et al. 2024, arXiv 2405.19547): keep the pairs whose pictures are like those of a target set.

    NormSim_p(x) = (sum_z |z . x|^p)^(1/p)    over the unit embeddings z of the target's pictures

p = inf is the similarity to the most similar target picture. p = 2 is the variance alignment score (VAS, arXiv
2402.02055), x' S x with S the second moment of the target, here as the root mean square similarity, in the same order.
Without a target set, the pool is its own for p = 2 (NormSim_2-D, VAS-D): in rounds, those least like what is left go.
The source applies it to what negCLIPLoss has kept.

Shapes: N pairs of the pool, M of the target, E width of the embedding.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, Target, best, counts, one_of
from tldr.signal.sphere import in_blocks, unit_rows
from tldr.signal.store import Signals

NORMS = ("inf", "2")
SETS = ("target", "pool")


class NormSim(Selector):
    """``p`` is inf or 2; ``against`` is the ``target`` set, or, with p=2, the ``pool`` itself in so many ``rounds``."""

    def __init__(
        self,
        *,
        p: str | float = "inf",
        against: str = "target",
        rounds: int = 10,
        embedding: str = "clip.embedding",
        target: Any = None,
    ) -> None:
        self.p = {"2.0": "2"}.get(str(p), str(p))
        one_of(NORMS, p=self.p)
        one_of(SETS, against=against)
        if against == "pool" and self.p != "2":
            raise ValueError("selector.against=pool needs selector.p=2: every picture is in the pool, at similarity 1")
        counts(1, rounds=rounds)
        self.rounds, self.embedding, self.target = rounds, embedding, target
        self.needs, self.needs_target = (embedding,), against == "target"

    def choose(
        self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, target: Target | None = None
    ) -> Selection:
        """Score by the target and keep the top, or drop in rounds."""
        assert signals is not None
        rows = unit_rows(pool, signals, self.embedding)
        if not self.needs_target:
            return self.inward(rows, keep)
        assert target is not None
        assert target.signals is not None
        aims = unit_rows(target.pairs, target.signals, self.embedding)
        if self.p == "2":
            score = spread(rows, aims)
            kept, cut = best(score, keep)
            reasons = [f"root mean square similarity to the target {s:.3g}, cut at {cut:.3g}" for s in score]
            return Selection(kept, reasons, {"norm_sim": score}, score)
        similarity, nearest = faiss.knn(rows, aims, 1, faiss.METRIC_INNER_PRODUCT)
        score, uids = similarity[:, 0], target.pairs.uids.to_pylist()
        kept, cut = best(score, keep)
        reasons = [
            f"similarity {s:.3g} to the target's {uids[t]}, cut at {cut:.3g}"
            for s, t in zip(score, nearest[:, 0], strict=True)
        ]
        return Selection(kept, reasons, {"norm_sim": score}, score)

    def inward(self, rows: np.ndarray, keep: int) -> Selection:
        """Drop an equal part of what must go in every round. A pair's score is that of its last round."""
        score, last = np.zeros(len(rows), np.float32), np.full(len(rows), self.rounds)
        cuts, left = np.zeros(self.rounds + 1), np.arange(len(rows))
        for number in range(1, self.rounds + 1):
            score[left] = spread(rows, rows)
            stay = len(score) - round((len(score) - keep) * number / self.rounds)
            among, cuts[number] = best(score[left], stay)
            last[np.delete(left, among)] = number
            left, rows = left[among], rows[among]
        reasons = [
            f"root mean square similarity to what was left {s:.3g}, cut at {cuts[r]:.3g} in round {r} of {self.rounds}"
            for s, r in zip(score, last, strict=True)
        ]
        return Selection(left, reasons, {"norm_sim": score, "round": last})


def spread(rows: np.ndarray, aims: np.ndarray) -> np.ndarray:
    """(N,) root mean square similarity of unit ``rows`` (N, E) to unit ``aims`` (M, E)."""
    moment = (aims.T @ aims) / len(aims)  # (E, E)
    squares = [np.einsum("ne,ne->n", some @ moment, some) for some in in_blocks(rows)]
    return np.sqrt(np.maximum(np.concatenate(squares), 0))
