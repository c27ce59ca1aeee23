"""What a refiner is: it rewrites the captions of the kept pairs with the captioner's. The original stays in
``caption_original``, the generated one in ``caption_generated``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tldr.pairs import Pairs

ORIGINAL, GENERATED = "caption_original", "caption_generated"


class Writer(Protocol):
    """Who writes captions, and says how well a caption fits."""

    def write(self, pairs: Pairs) -> list[str]:
        """A caption for each pair's picture."""
        ...

    def align(self, pairs: Pairs) -> np.ndarray:
        """(n,) how well each pair's caption fits its picture."""
        ...


class Refiner(ABC):
    """A subclass defines `refine`; ``writes`` False means that no captioner is needed."""

    writes: bool = True

    def __call__(self, subset: Pairs, writer: Writer | None) -> Pairs:
        """The same pairs (uids, pictures) with refined captions."""
        if not self.writes:
            return subset
        assert writer is not None
        original = subset.captions.to_pylist()
        generated = [caption.strip() for caption in writer.write(subset)]
        refined = self.refine(subset, generated, writer)
        # A picture of which the captioner has nothing to say keeps its caption.
        refined = [new if new.strip() else old for new, old in zip(refined, original, strict=True)]
        return subset.with_column(ORIGINAL, original).with_column(GENERATED, generated).with_column("caption", refined)

    @abstractmethod
    def refine(self, subset: Pairs, generated: Sequence[str], writer: Writer) -> list[str]:
        """n captions, from the original and the ``generated`` ones."""
