"""T_o + T_g: the generated caption after the original (TL;DR section 3.3).

The paper's released code joins with "; " and then cuts both at 30 words, so that a long original pushes the generated
caption out. Here nothing is cut: the models' ``text.max_length`` should leave room for both."""

from __future__ import annotations

from collections.abc import Sequence

from tldr.pairs import Pairs
from tldr.refiner.base import Refiner, Writer, check_joiner


class Append(Refiner):
    """Original, ``joiner``, generated."""

    def __init__(self, *, joiner: str = "; ") -> None:
        check_joiner(joiner)
        self.joiner = joiner

    def refine(self, subset: Pairs, generated: Sequence[str], writer: Writer) -> list[str]:
        """Both captions in one."""
        pairs = zip(subset.captions.to_pylist(), generated, strict=True)
        return [f"{old.rstrip()}{self.joiner}{new}" if new.strip() else old for old, new in pairs]
