"""What a refiner is: it rewrites the captions of the kept pairs with the captioner's. The original stays in
``caption_original``, the generated one in ``caption_generated``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tldr.pairs import Pairs
from tldr.signal.panel import MAIN

ORIGINAL, GENERATED = "caption_original", "caption_generated"


class Writer(Protocol):
    """Who writes captions, and says how well a caption fits."""

    def write(self, pairs: Pairs) -> list[str]:
        """A caption for each pair's picture."""
        ...

    def align(self, pairs: Pairs, scorer: str = MAIN) -> np.ndarray:
        """(n,) how well each pair's caption fits its picture, as the one who writes says, or another ``scorer``."""
        ...


def judged(pairs: Pairs, writer: Writer, scorer: str = MAIN) -> np.ndarray:
    """(n,) float32 `Writer.align`. Raises ValueError naming the pairs of which it is NaN."""
    found = np.asarray(writer.align(pairs, scorer) if scorer else writer.align(pairs), np.float32)
    strange = np.flatnonzero(np.isnan(found))
    if len(strange):
        uids = ", ".join(pairs.uids[int(row)].as_py() for row in strange[:3])
        raise ValueError(f"the scorer {scorer or 'that writes'} says NaN of {len(strange)} pairs, such as {uids}")
    return found


def better(subset: Pairs, generated: Sequence[str], writer: Writer, margin: float) -> list[str]:
    """n captions: the ``generated`` one where its alignment exceeds the original's by more than ``margin``. Where
    nothing was written the original stands in, so that nobody judges an empty text."""
    texts = [new or old for new, old in zip(generated, subset.captions.to_pylist(), strict=True)]
    gain = judged(subset.with_column("caption", texts), writer) - judged(subset, writer)
    return [
        new if ahead > margin else old for old, new, ahead in zip(subset.captions.to_pylist(), texts, gain, strict=True)
    ]


class Refiner(ABC):
    """A subclass defines `refine`. ``writes`` False: captions stay as they are. ``needs_writer`` False: no captioner is
    needed. ``needs``: the signals of other scorers that it judges by (``blip.alignment``), as selectors name them."""

    writes: bool = True
    needs_writer: bool = True
    needs: tuple[str, ...] = ()

    def __call__(self, subset: Pairs, writer: Writer | None) -> Pairs:
        """The same pairs (uids, pictures) with refined captions."""
        if not self.writes:
            return subset
        assert writer is not None
        original = subset.captions.to_pylist()
        generated = [caption.strip() for caption in writer.write(subset)]
        refined = self.refine(subset, generated, writer)
        refined, columns = refined if isinstance(refined, tuple) else (refined, {})
        # A picture of which the captioner has nothing to say keeps its caption.
        refined = [new if new.strip() else old for new, old in zip(refined, original, strict=True)]
        told = {ORIGINAL: original, GENERATED: generated, "caption": refined, **columns}
        for name, values in told.items():
            subset = subset.with_column(name, values)
        return subset

    @abstractmethod
    def refine(
        self, subset: Pairs, generated: Sequence[str], writer: Writer
    ) -> list[str] | tuple[list[str], Mapping[str, Any]]:
        """n captions, from the original and the ``generated`` ones; of who says more, also columns of n values."""
