"""Captions stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from tldr.pairs import Pairs
from tldr.refiner.base import Refiner, Writer


class Keep(Refiner):
    """The subset unchanged."""

    writes = needs_writer = False

    def refine(self, subset: Pairs, generated: Sequence[str], writer: Writer) -> list[str]:
        """The captions there are."""
        return subset.captions.to_pylist()
