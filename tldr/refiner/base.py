"""What a refiner is: it rewrites the captions of the kept pairs with the captioner's. The original stays in
``caption_original`` (of a subset that is refined again, the first), the generated one in ``caption_generated``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tldr.check import check_number
from tldr.pairs import Pairs
from tldr.signal.panel import MAIN

ORIGINAL, GENERATED = "caption_original", "caption_generated"


class Writer(Protocol):
    """Writes captions, and says how well a caption fits its picture."""

    def write(self, pairs: Pairs) -> list[str]:
        """A caption for each pair's picture."""
        ...

    def align(self, pairs: Pairs, scorer: str = MAIN) -> np.ndarray:
        """(n,) how well each pair's caption fits its picture, according to the captioner or another ``scorer``."""
        ...


def judged(
    subset: Pairs, generated: Sequence[str], writer: Writer, scorer: str = MAIN
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float32 each: how well the original captions fit, and how well the ``generated`` ones do. Where nothing was
    generated, the original stands in, so that no empty text is judged. Raises ValueError naming the pairs for which the
    scorer gives NaN."""

    def judge(pairs: Pairs) -> np.ndarray:
        found = np.asarray(writer.align(pairs, scorer), np.float32)
        pairs.refuse(np.isnan(found), f"the scorer {scorer or 'that writes'} gives NaN for")
        return found

    texts = [new or old for new, old in zip(generated, subset.captions.to_pylist(), strict=True)]
    return judge(subset), judge(subset.with_column("caption", texts))


def better(subset: Pairs, generated: Sequence[str], writer: Writer, margin: float) -> list[str]:
    """n captions: the ``generated`` one where its alignment exceeds the original's by more than ``margin``."""
    old, new = judged(subset, generated, writer)
    captions = zip(subset.captions.to_pylist(), generated, new - old, strict=True)
    return [made if ahead > margin else found for found, made, ahead in captions]


def check_joiner(joiner: object) -> None:
    """Raises ValueError unless ``joiner`` is a string."""
    if not isinstance(joiner, str):
        raise ValueError(f"refiner.joiner={joiner!r} must be a text to put between the two captions, such as '; '")


def check_margin(margin: float) -> None:
    """Raises ValueError unless ``margin`` is a number."""
    check_number("refiner.margin", margin, "a number of nats by which the generated caption must lead", low=-math.inf)


class Refiner(ABC):
    """A subclass defines `refine`. ``writes=False``: captions stay as they are. ``needs_writer=False``: no captioner is
    needed. ``needs``: the signals of other scorers that it judges by (``blip.alignment``), named as selectors do.
    ``device``, the task's ``device=``: where a model of its own runs."""

    writes: bool = True
    needs_writer: bool = True
    needs: tuple[str, ...] = ()
    device: str = "cpu"

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
        told = {GENERATED: generated, "caption": refined, **columns}
        if ORIGINAL not in subset.table.column_names:  # else it is what an earlier refiner was given
            told = {ORIGINAL: original, **told}
        for name, values in told.items():
            subset = subset.with_column(name, values)
        return subset

    @abstractmethod
    def refine(
        self, subset: Pairs, generated: Sequence[str], writer: Writer
    ) -> list[str] | tuple[list[str], Mapping[str, Any]]:
        """n captions, from the original and the ``generated`` ones; of who says more, also columns of n values."""
