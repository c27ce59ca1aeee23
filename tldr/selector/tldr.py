"""TL;DR's own selector: keep the pairs whose caption fits, unless a pair that fits better shows nearly the same.

The paper (Wang et al., ICCV 2023, section 3.2, arXiv 2305.20087) draws the same share of every cluster of codes at
random, which keeps the pool's share of wrong captions and of repeated pictures (`tldr.selector.tldr_paper`). The same
captioner and the same codes say more:

    fit      the alignment (`tldr.model.captioner`) of picture and caption
    novelty  the distance, between the pictures' code vectors, to the most similar pair that fits better; for the best
             of a group of repeated pictures it is large, for all others small (the idea of density peaks: Rodriguez and
             Laio, Science 2014)

A pair is worth ``fit * min(distance / r, 1) ^ novelty``, density peaks' product, where ``r`` is ``reach`` times the
distance that 99 of 100 pairs do not exceed. So no pair is worth more than its fit, however far its picture is from all
others, and what a repetition costs does not depend on how many of the pool are. A fit that is not positive, where the
picture says nothing for its caption, is what its pair is worth: it comes after all others. A smaller selection is part
of a larger one. Pairs are compared inside clusters, as in SemDeDup.

Shapes: N pairs.
"""

from __future__ import annotations

import numpy as np

from tldr.check import check_number
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best, counts
from tldr.signal.feature import Feature, sampled, signal_of
from tldr.signal.sphere import Duplicates, cluster_count, on_sphere
from tldr.signal.store import Signals

NEAREST = 1e-3  # distances below it are as good as none
STEEPEST = 1e9  # a power at which any picture nearer than `reach` is worth nothing


class TLDR(Selector):
    """``novelty``: the power of the distance; 0: the fit alone, and no codes are needed. ``reach``: the distance from
    which a picture is new, as a share of the pool's largest (their 99th percentile). ``feature``
    (`tldr.signal.feature`; ``dim`` components of tokens or histogram) says what is alike, inside at most ``clusters``
    clusters of at least ``rows_per_cluster`` pairs; its vectors are held in memory, 4 bytes a number."""

    def __init__(
        self,
        *,
        novelty: float = 1.0,
        reach: float = 0.4,
        feature: str = "tokens",
        dim: int = 64,
        clusters: int = 50_000,
        rows_per_cluster: int = 8800,
    ) -> None:
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster, dim=dim)
        check_number("selector.novelty", novelty, "a finite power, from 0", low=0, high=STEEPEST)
        check_number("selector.reach", reach, "a share of the largest distance, from 0.001 to 1", low=1e-3, high=1)
        self.novelty, self.reach, self.feature, self.dim = novelty, reach, feature, dim
        self.clusters, self.rows_per_cluster = clusters, rows_per_cluster
        alike = signal_of(feature)
        self.needs = (alike, "alignment") if novelty else ("alignment",)

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Find everyone's nearest better pair, then keep those worth most."""
        assert signals is not None
        fit = signals["alignment"].read().astype(np.float32)
        if not self.novelty:
            kept, cut = best(fit, keep)
            return Selection(kept, [f"alignment {f:.3g}, cut at {cut:.3g}" for f in fit], {"alignment": fit}, fit)
        feature = Feature(self.feature, signals, sampled(len(pool), seed=seed), dim=self.dim)
        rows = on_sphere(pool, feature.chunks(), signal_of(self.feature))
        clusters = cluster_count(self.clusters, len(pool), self.rows_per_cluster)
        found = Duplicates.find(rows, clusters, choice=fit, seed=seed)
        distance = np.maximum(np.sqrt(np.maximum(2 - 2 * found.similarity, 0)), NEAREST)
        distance[found.twin < 0] = distance[found.twin >= 0].max(initial=1.0)  # nobody in the cluster fits better
        new = np.minimum(distance / (self.reach * float(np.percentile(distance, 99))), 1)
        worth = np.where(fit > 0, fit * new**self.novelty, fit)
        kept, cut = best(worth, keep)
        uids = pool.uids
        reasons = [
            f"alignment {f:.3g}, "
            + (f"at {d:.3g} from {uids[t].as_py()}, which fits no worse" if t >= 0 else "the best of its cluster")
            + f"; worth {w:.3g}, cut at {cut:.3g}"
            for f, d, t, w in zip(fit, distance, found.twin.tolist(), worth, strict=True)
        ]
        scores = {"cluster": found.cluster, "alignment": fit, "distance": distance, "worth": worth}
        return Selection(kept, reasons, scores, worth)
