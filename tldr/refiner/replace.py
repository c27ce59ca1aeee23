"""T_g alone. The paper finds that equal captions for different pictures then collapse the contrastive loss: for
comparison."""

from __future__ import annotations

from collections.abc import Sequence

from tldr.pairs import Pairs
from tldr.refiner.base import Refiner, Writer


class Replace(Refiner):
    """The generated caption instead of the original."""

    def refine(self, subset: Pairs, generated: Sequence[str], writer: Writer) -> list[str]:
        """The generated captions."""
        return list(generated)
