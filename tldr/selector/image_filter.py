"""DataComp's image-based filter (Gadre et al. 2023, arXiv 2304.14108, section 5 and its code): cluster the pictures of
the pool, and keep the clusters that are nearest to some picture of a target set (DataComp's is ImageNet). Captions must
also have more than one word and 5 characters, and be English in DataComp (here with ``language=en``); clusters are
learned from such pairs.

A filter decides itself how many pairs pass: if more than wanted, a random draw or a ``score`` chooses among them; if
fewer, pairs of the clusters next in similarity to a target picture are taken back, then those whose captions break the
fewest rules.

Shapes: N pairs of the pool, M of the target, K clusters.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from tldr.data import basic
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, Target, counts
from tldr.signal.sphere import Sphere, cluster_count, unit_rows
from tldr.signal.store import Signals


class ImageFilter(Selector):
    """``clusters`` at most, of ``rows_per_cluster`` pairs at least, over ``embedding``; captions of ``words`` and
    ``characters`` at least, in ``language`` (``en``; None: any); ``score``: the signal by which those that pass are
    chosen (``clip.alignment``; None: a draw)."""

    needs_target = True

    def __init__(
        self,
        *,
        clusters: int = 100_000,
        rows_per_cluster: int = 128,
        words: int = 2,
        characters: int = 6,
        language: str | None = None,
        score: str | None = None,
        embedding: str = "clip.embedding",
        target: Any = None,
    ) -> None:
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster)
        counts(0, words=words, characters=characters)
        basic.check_language(language)
        self.clusters, self.rows_per_cluster, self.embedding = clusters, rows_per_cluster, embedding
        self.words, self.characters, self.language, self.score = words, characters, language, score
        self.target = target
        self.needs = (embedding, score) if score else (embedding,)

    @property
    def target_needs(self) -> tuple[str, ...]:
        """The score is asked of the pool alone."""
        return (self.embedding,)

    def check(self, pool: Pairs) -> None:
        """Raises ValueError where a language is asked for and nothing is there to tell it."""
        super().check(pool)
        if self.language is not None:
            basic.detector()

    def choose(
        self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, target: Target | None = None
    ) -> Selection:
        """Cluster, mark the clusters of the target, and keep of them."""
        assert signals is not None
        assert target is not None
        assert target.signals is not None
        rules = basic.captions(pool, words=self.words, characters=self.characters, language=self.language)
        broken = basic.broken(rules)
        rows = unit_rows(pool, signals, self.embedding)
        aims = unit_rows(target.pairs, target.signals, self.embedding)
        learn = np.flatnonzero(broken == 0) if (broken == 0).any() else np.arange(len(pool))
        sphere = Sphere.fit(rows, cluster_count(self.clusters, len(learn), self.rows_per_cluster), seed=seed, of=learn)
        _, where = faiss.knn(aims, sphere.centroids, 1, faiss.METRIC_INNER_PRODUCT)
        shown = np.bincount(where[:, 0], minlength=len(sphere.centroids))  # (K,) target pictures
        cosine, nearest = faiss.knn(sphere.centroids, aims, 1, faiss.METRIC_INNER_PRODUCT)

        label = sphere.label
        # What lies in a cluster of the target is as near as can be; else the similarity of its cluster to the target.
        near = np.where(shown > 0, np.inf, cosine[:, 0])[label]
        merit = np.random.default_rng(seed).random(len(pool), np.float32)
        scores, what = {"cluster": label, "rules_broken": broken, "target_pictures": shown[label]}, "draw"
        if self.score:
            merit, what = signals[self.score].read().astype(np.float32), self.score
            scores[self.score] = merit
        order = np.lexsort((np.arange(len(pool)), -merit, -near, broken))
        kept = np.zeros(len(pool), bool)
        kept[order[:keep]] = True
        passes = (broken == 0) & (shown[label] > 0)
        passed, last, uids = int(passes.sum()), merit[order[keep - 1]], target.pairs.uids.to_pylist()
        back = f"; taken back, as only {passed} pass and {keep} are kept"
        reasons = []
        for row, cluster in enumerate(label):
            if shown[cluster]:
                verdict = f"cluster {cluster} is the nearest to {shown[cluster]} of the target's pictures"
            else:
                uid = uids[nearest[cluster, 0]]
                verdict = (
                    f"cluster {cluster} is not the nearest to any target picture; similarity {cosine[cluster, 0]:.3g} "
                    f"to the closest, {uid}"
                )
            if passes[row]:
                verdict += f"; {what} {merit[row]:.3g}, cut at {last:.3g}, {passed} pass" if passed > keep else ""
            else:
                faults = basic.told(rules, row)
                verdict += (f"; {faults}" if faults else "") + (back if kept[row] else "")
            reasons.append(verdict)
        return Selection(np.flatnonzero(kept), reasons, scores, -np.argsort(order))
