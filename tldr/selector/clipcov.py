"""ClipCov (Joshi et al., AISTATS 2024, arXiv 2403.12267): keep the cross-covariance of pictures and captions.

With pictures x and captions y on the unit sphere and s_ij = <x_i, y_j>, the source shows that a subset whose
cross-covariance inside every latent class is that of all pairs generalises as well, and picks greedily. What a pair i
of class V is worth given the pairs S already picked of it, as the released notebook has it:

    sum over j in V less S of (s_ij + s_ji) / |V|     how much it stands for, less what S stands for already; s >= 0
    + 2 s_ii                                          the pair itself fits
    + <y_i, class> / 2                                the caption is central to its class
    - mean over other classes of <x_i, their captions' centre> + <y_i, their pictures' centre>
    - sum over j in S of c_j / |V|                    every pick makes the class as a whole less wanted; c_j: the first
                                                      line of j with S empty, and half of its centrality

Departures: the notebook's classes are the names of ImageNet, assigned by zero-shot classification; ours are clusters of
picture and caption together, and the class in the third line is the mean of its captions. The notebook refreshes after
every 200 picks, subtracting the last line again for all picks so far; we refresh after every pick and subtract it once.
Worth only falls inside a class, so classes are ordered one by one and merged.

Shapes: N pairs, n of a class, E width.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best, counts
from tldr.signal.sphere import DENSE, Sphere, cluster_count, cosines, in_blocks, unit, unit_rows
from tldr.signal.store import Signals, gathered


class ClipCov(Selector):
    """Latent classes are ``clusters`` at most, of ``rows_per_cluster`` pairs at least; ``scorer``: whose embeddings,
    ``clip`` or another with both."""

    def __init__(self, *, clusters: int = 1000, rows_per_cluster: int = 128, scorer: str = "clip") -> None:
        counts(1, clusters=clusters, rows_per_cluster=rows_per_cluster)
        self.clusters, self.rows_per_cluster = clusters, rows_per_cluster
        self.needs = (f"{scorer}.embedding", f"{scorer}.text_embedding")

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Find the classes, order each, and keep what is worth most."""
        assert signals is not None
        image, text = (unit_rows(pool, signals, name) for name in self.needs)
        clusters = cluster_count(self.clusters, len(pool), self.rows_per_cluster)
        if clusters < (wanted := 2 * len(pool) // DENSE):  # larger classes take time by the square of their size
            print(f"selector.clusters: {clusters} are raised to {wanted}, for classes of about {DENSE // 2} pairs")
            clusters = wanted
        both = map(np.add, in_blocks(image), in_blocks(text))
        sphere = Sphere.fit(gathered(map(unit, both), len(pool)), clusters, seed=seed)
        classes = [members for members in sphere.members() if len(members)]
        foreign = _foreign(image, text, classes) + _foreign(text, image, classes)
        worth, place = np.empty(len(pool), np.float32), np.empty(len(pool), np.int64)
        for members in classes:
            worth[members], place[members] = order(image[members], text[members], foreign[members])
        chosen, cut = best(worth, keep)
        fit = cosines(image, text)
        reasons = [
            f"worth {w:.4g} as pick {p + 1} of class {c}, cut at {cut:.4g}; picture and caption {f:.3g}"
            for w, p, c, f in zip(worth, place, sphere.label, fit, strict=True)
        ]
        return Selection(chosen, reasons, {"cluster": sphere.label, "worth": worth, "fit": fit}, worth)


def order(image: np.ndarray, text: np.ndarray, foreign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For one class, (n, E) unit ``image`` and ``text`` and what they have in common with the others, ``foreign``
    (n,): what each is worth when it is picked (n,), and as which (n,). Ties in the order of the rows."""
    count = len(image)

    def stands_for(rows: slice | int) -> np.ndarray:
        """(m, n): how much those rows stand for every one."""
        ours, theirs = np.atleast_2d(image[rows]), np.atleast_2d(text[rows])
        return (np.maximum(ours @ text.T, 0) + np.maximum(theirs @ image.T, 0)) / count

    blocks = [stands_for(slice(start, start + 1024)) for start in range(0, count if count <= DENSE else 0, 1024)]
    dense = np.concatenate(blocks) if blocks else None
    if dense is not None:
        centrality = dense.sum(1)
    else:
        centrality = np.concatenate([stands_for(slice(s, s + 1024)).sum(1) for s in range(0, count, 1024)])
    central = np.maximum(text @ unit(text.mean(0, keepdims=True))[0], 0)
    worth = centrality + 2 * (image * text).sum(1) + central / 2 - foreign
    tax = (centrality + central / 2) / count
    value, place = np.empty(count, np.float32), np.empty(count, np.int64)
    lowest = np.inf
    for number in range(count):
        pick = int(worth.argmax())
        lowest = min(lowest, float(worth[pick]))  # rounding aside, worth only falls
        value[pick], place[pick] = lowest, number
        worth -= (dense[pick] if dense is not None else stands_for(pick)[0]) + tax[pick]
        worth[pick] = -np.inf
    return value, place


def _foreign(rows: np.ndarray, others: np.ndarray, classes: list[np.ndarray]) -> np.ndarray:
    """(N,) mean similarity of each of the (N, E) ``rows`` to the centres of ``others`` of the classes that it is not
    in."""
    centres = np.stack([others[members].mean(0) for members in classes])
    result = np.zeros(len(rows), np.float32)
    if len(classes) > 1:
        for members, centre in zip(classes, centres, strict=True):
            result[members] = rows[members] @ ((centres.sum(0) - centre) / (len(classes) - 1))
    return result
