"""Of the original and the generated caption, the one that fits the picture better.

A captioner prefers its own words, even to good originals, so the generated caption must be ahead by ``margin`` (in
nats, for alignments of a captioner).
"""

from __future__ import annotations

from collections.abc import Sequence

from tldr.pairs import Pairs
from tldr.refiner.base import Refiner, Writer, better, check_margin


class Best(Refiner):
    """The generated caption where its alignment exceeds the original's by more than ``margin``."""

    def __init__(self, *, margin: float = 2.0) -> None:
        check_margin(margin)
        self.margin = margin

    def refine(self, subset: Pairs, generated: Sequence[str], writer: Writer) -> list[str]:
        """One of the two captions for each pair."""
        return better(subset, generated, writer, self.margin)
