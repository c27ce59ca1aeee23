"""TL;DR's own selector: keep the pairs whose caption fits, unless a pair that fits better shows nearly the same.

The paper (Wang et al., ICCV 2023, section 3.2, arXiv 2305.20087) draws the same share of every cluster of codes at
random, which keeps the pool's share of wrong captions and of repeated pictures (`tldr.selector.tldr_paper`). The same
captioner and the same codes say more:

    fit      the alignment (`tldr.model.captioner`) of picture and caption
    novelty  the distance, between the pictures' code vectors, to the most similar pair that fits better; for the best
             of a group of repeated pictures it is large, for all others small (the idea of density peaks: Rodriguez and
             Laio, Science 2014)

A pair is worth its fit plus ``novelty`` times the logarithm of that distance, both in standard deviations of the pool:
nothing has to be known of how many captions are wrong, of how many pictures repeat, or of how similar repetitions are,
and a smaller selection is part of a larger one. Beyond ``limit`` a greater distance is worth no more: what is far from
all that fits better is often a pair that fits badly. Pairs are compared inside clusters, as in SemDeDup.

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
FAR = 1e9  # standard deviations


class TLDR(Selector):
    """``novelty``: how many standard deviations of fit one of novelty is worth; 0: the fit alone, and no codes are
    needed. ``limit``: novelty is capped at so many standard deviations above its mean; inf: no cap. ``feature``
    (`tldr.signal.feature`; ``dim`` components of tokens or histogram) says what is alike, inside at most ``clusters``
    clusters of at least ``rows_per_cluster`` pairs; its vectors are held in memory, 4 bytes a number."""

    def __init__(
        self,
        *,
        novelty: float = 0.5,
        limit: float = 0.3,
        feature: str = "tokens",
        dim: int = 64,
        clusters: int = 50_000,
        rows_per_cluster: int = 8800,
    ) -> None:
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster, dim=dim)
        check_number("selector.novelty", novelty, "a finite number of standard deviations, from 0", low=0, high=FAR)
        check_number("selector.limit", limit, "a number of standard deviations, or inf for no limit", low=-FAR)
        self.novelty, self.limit, self.feature, self.dim = novelty, limit, feature, dim
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
        worth = standard(fit) + self.novelty * np.minimum(standard(np.log(distance)), self.limit)
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


def standard(values: np.ndarray) -> np.ndarray:
    """(N,) in standard deviations from the mean; zeros where all are equal."""
    return (values - values.mean()) / max(float(values.std()), 1e-12)
