"""Data pruning (Sorscher et al. 2022, arXiv 2206.14486): keep the hard pairs, or the easy ones where data are scarce.

Difficulty by
    prototypes      cosine distance to the nearest centroid of k-means over embeddings: self-supervised
    supervised      cosine distance to the mean of its label
    el2n, grand     ||p(x) - y|| and the norm of the gradient early in training (Paul et al. 2021, arXiv 2107.07075)
    forgetting      how often it turned from right to wrong (Toneva et al. 2019, arXiv 1812.05159)
The last three are signals of a classifier of the labels. Metrics amplify the imbalance of classes, so every class keeps
at least ``class_floor`` of an equal share, where labels are named; the source's half.

Shapes: N pairs, C classes.
"""

from __future__ import annotations

import numpy as np

from tldr.cluster import ranks
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best, counts, inside, one_of
from tldr.signal.sphere import Sphere, cluster_count, unit, unit_rows
from tldr.signal.store import Signals

LABELLED = {"el2n": "EL2N", "grand": "GraNd", "forgetting": "forgotten", "supervised": "distance to the label's mean"}
SCORES = ("prototypes", *LABELLED)
CHOICES = ("hard", "easy")


class DataPruning(Selector):
    """``score`` is one of `SCORES`; ``choice`` keeps the ``hard`` (a high score) or the ``easy``. ``labels`` is the
    column of the pool that holds them: the last four scores and the ``class_floor`` (0: none) need it. ``clusters`` at
    most, of ``rows_per_cluster`` pairs at least, over ``embedding``, are for prototypes (the source: 1000 for 1.28M
    pictures; 100 to 10,000 make no difference)."""

    def __init__(
        self,
        *,
        score: str = "prototypes",
        choice: str = "hard",
        labels: str | None = None,
        class_floor: float = 0.5,
        clusters: int = 1000,
        rows_per_cluster: int = 128,
        embedding: str = "clip.embedding",
    ) -> None:
        one_of(SCORES, score=score)
        one_of(CHOICES, choice=choice)
        inside("a share of the equal part", class_floor=class_floor)
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster)
        self.score, self.choice, self.labels, self.class_floor = score, choice, labels, class_floor
        self.clusters, self.rows_per_cluster, self.embedding = clusters, rows_per_cluster, embedding
        classifies = score not in ("prototypes", "supervised")
        self.scorer_options = {"classifier": {"column": labels}} if classifies and labels is not None else {}
        self.needs = (f"classifier.{score}",) if classifies else (embedding,)

    def check(self, pool: Pairs) -> None:
        """Raises ValueError where a score needs labels and none are named, or the column is not there or has gaps."""
        super().check(pool)
        if self.labels is None:
            if self.score in LABELLED:
                raise ValueError(
                    f"selector.score={self.score} needs labels; name their column, such as selector.labels=label, or "
                    "choose selector.score=prototypes"
                )
            return
        names = pool.table.column_names
        if self.labels not in names:
            raise ValueError(f"selector.labels={self.labels}: the pool has no such column; it has {', '.join(names)}")
        gaps = np.flatnonzero(pool.table[self.labels].is_null().to_numpy())
        if len(gaps):
            uid = pool.uids[int(gaps[0])].as_py()
            raise ValueError(f"selector.labels={self.labels}: {len(gaps)} pairs have no label, such as {uid}")

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Score, give every class its floor, and fill up with the best of the rest."""
        assert signals is not None
        self.check(pool)
        names, label = np.array([""]), np.zeros(len(pool), np.int64)
        if self.labels is not None:
            names, label = np.unique(pool.column(self.labels), return_inverse=True)
        scores: dict[str, np.ndarray] = {}
        if self.score == "prototypes":
            rows = unit_rows(pool, signals, self.embedding)
            sphere = Sphere.fit(rows, cluster_count(self.clusters, len(pool), self.rows_per_cluster), seed=seed)
            value = np.maximum(1 - sphere.similarity, 0)
            scores = {"cluster": sphere.label, "distance": value}
            what = [f"{v:.3g} from the centre of cluster {c}" for v, c in zip(value, sphere.label, strict=True)]
        elif self.score == "supervised":
            value = _to_own_mean(unit_rows(pool, signals, self.embedding), label)
            scores["distance"] = value
            what = [f"{v:.3g} from the mean of {names[c]}" for v, c in zip(value, label, strict=True)]
        else:
            value = scores[self.score] = signals[f"classifier.{self.score}"].read().astype(np.float32)
            if self.score == "forgetting":
                pool.refuse(
                    np.isnan(value),
                    "selector.score=forgetting needs every pair shown in training: raise "
                    "scorers.classifier.training.max_steps or give a scorers.classifier.checkpoint trained on this "
                    "pool; training never showed",
                )
            what = [f"{LABELLED[self.score]} {v:.3g}" for v in value]
        merit = value if self.choice == "hard" else -value
        floor = self.class_floor if self.labels is not None else 0.0
        safe = ranks(label, merit) < int(floor * keep / len(names))
        chosen, _ = best(np.where(safe, np.inf, merit), keep)
        kept = np.zeros(len(pool), bool)
        kept[chosen] = True
        rest = value[kept & ~safe]
        ends = f"from {rest.min():.3g}" if len(rest) and self.choice == "hard" else "the floors alone"
        ends = f"up to {rest.max():.3g}" if len(rest) and self.choice == "easy" else ends
        reasons = [
            f"{w}; the {self.choice} are kept, {ends}" + (f"; within the floor of {names[c]}" if s else "")
            for w, s, c in zip(what, safe, label, strict=True)
        ]
        return Selection(chosen, reasons, scores, None if floor else merit)


def _to_own_mean(rows: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(N,) cosine distance of (N, E) unit ``rows`` to the mean of their class."""
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(label.max() + 1))
    means = unit(np.add.reduceat(rows[order], starts))
    return np.maximum(1 - (rows * means[label]).sum(1), 0)
