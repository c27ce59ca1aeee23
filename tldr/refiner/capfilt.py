"""CapFilt (Li et al. 2022, arXiv 2201.12086, section 4.2): a captioner writes a text for each picture, and a filter
drops the texts, found or written, that it judges not to match.

In the paper, captioner and filter are one BLIP, fine-tuned twice on COCO, and a new model is trained on what passes: a
picture with two texts that pass counts as two pairs, and one with none is dropped. Here a selector has already decided
which pairs are kept and how many, so the pairs stay the same, and only their texts change:

    both pass    ``both`` says which is the caption; all that passed are in the column ``captions_kept``
    one passes   it is the caption
    none passes  the better one is the caption, and the column ``capfilt`` says so

The filter is the log-odds of a BLIP's matching head, log p(match) - log p(no match), which BLIP cuts at 0 (whichever is
more likely); or the alignment of the captioner itself, in nats. A filter that shares its weights with the captioner
favours the captioner's texts and lets noise pass (the paper's table 4: it drops 8 % of the texts, a separate filter 25
%).

Shapes: n pairs of the subset.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tldr.check import check_number
from tldr.pairs import Pairs
from tldr.refiner.base import Refiner, Writer, check_joiner, judged
from tldr.signal.panel import MAIN

VERDICT, KEPT = "capfilt", "captions_kept"
JUDGED_ORIGINAL, JUDGED_GENERATED = "match_original", "match_generated"
BOTH = ("draw", "append", "best", "original", "generated")
NOBODY = "writer"  # the captioner judges its own


class CapFilt(Refiner):
    """``filter`` is the name of the scorer that judges (``blip``), or ``writer``: the captioner itself. A text passes
    whose alignment is above ``threshold``.

    ``both``, where both texts pass: ``draw`` one of the two for each pair, evenly by ``seed`` and uid, as BLIP's
    batches hold either; ``append`` the generated one after ``joiner``; the ``best``; the ``original``; the
    ``generated``.

    Columns: ``capfilt`` which texts passed (both, original, generated, neither), ``captions_kept`` the list of them,
    ``match_original`` and ``match_generated`` what the filter said, the latter null where nothing was written.
    """

    def __init__(
        self, *, filter: str = "blip", threshold: float = 0.0, both: str = "draw", joiner: str = "; ", seed: int = 0
    ) -> None:
        if both not in BOTH:
            raise ValueError(f"refiner.both={both!r}; choose from {', '.join(BOTH)}")
        most = sys.float_info.max
        check_number("refiner.threshold", threshold, "a cut in log-odds (nats), 0 in the paper", low=-most, high=most)
        self.scorer = MAIN if filter == NOBODY else filter
        self.needs = (f"{filter}.alignment",) if self.scorer else ()
        check_joiner(joiner)
        self.threshold, self.both, self.joiner, self.seed = threshold, both, joiner, seed

    def refine(
        self, subset: Pairs, generated: Sequence[str], writer: Writer
    ) -> tuple[list[str], dict[str, pa.Array | list]]:
        """A caption of each pair, and the columns. Raises ValueError naming the pairs whose judgement is NaN."""
        written = np.array([bool(text) for text in generated], bool)
        old, new = judged(subset, generated, writer, self.scorer)
        old_passes, new_passes = old > self.threshold, written & (new > self.threshold)
        better = written & (new > old)
        choose = np.where(old_passes == new_passes, better, new_passes)  # the generated one?
        both = old_passes & new_passes
        if self.both in ("original", "generated", "draw"):
            choose = np.where(both, self._draws(subset) if self.both == "draw" else self.both == "generated", choose)

        captions, kept = [], []
        rows = zip(subset.captions.to_pylist(), generated, choose, old_passes, new_passes, strict=True)
        for found, made, takes_made, found_passes, made_passes in rows:
            joined = self.both == "append" and found_passes and made_passes
            captions.append(f"{found.rstrip()}{self.joiner}{made}" if joined else made if takes_made else found)
            kept.append([text for text, passes in ((found, found_passes), (made, made_passes)) if passes])
        names = np.array(["neither", "original", "generated", "both"])
        return captions, {
            VERDICT: names[old_passes + 2 * new_passes].tolist(),
            KEPT: pa.array(kept, pa.large_list(pa.large_string())),
            JUDGED_ORIGINAL: pa.array(old, pa.float32()),
            JUDGED_GENERATED: pa.array(new, pa.float32(), mask=~written),
        }

    def _draws(self, subset: Pairs) -> np.ndarray:
        """(n,) a fair coin for each pair, the same whatever other pairs are kept."""
        digests = (hashlib.blake2b(f"{self.seed}:{uid}".encode(), digest_size=1) for uid in subset.uids.to_pylist())
        return np.array([digest.digest()[0] & 1 for digest in digests], bool)
