"""The pairs that `select.py` wrote, read like any source: to reduce them again, or as the target of a selection.

All their columns are kept, including planted truth and the captions before refinement; pictures are checked anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from tldr.data.base import Bad, Reader, Row
from tldr.pairs import DIGEST, REQUIRED, SECOND_DIGEST, Pairs, home_of

_ROWS = 4096


class Subset(Reader):
    """The subset in a folder, ``pairs``. Raises ValueError where there is none."""

    def __init__(self, pairs: str | Path, *, name: str = "subset") -> None:
        self.home, self.name = home_of(pairs), name
        self.pairs = Pairs.open(self.home)
        self.root = self.pairs.root

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs with their uids, in their order."""
        others = [name for name in self.pairs.table.column_names if name not in (*REQUIRED, DIGEST, SECOND_DIGEST)]
        rows = chain.from_iterable(batch.to_pylist() for batch in self.pairs.table.to_batches(_ROWS))
        for number, found in enumerate(rows):
            extra = {name: found[name] for name in others}
            yield Row(found["image"], found["caption"], found["uid"], extra, f"{self.home.name} row {number}")
