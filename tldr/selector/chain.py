"""Selectors one after the other: each step reduces what the one before kept, down to exactly ``keep``.

It is how the literature combines a step against repetition with one for quality (DataComp, arXiv 2304.14108, section
5; D4, arXiv 2308.12284). What a later step says of the pairs that an earlier one dropped is not known, so decisions
hold the scores of the steps that saw every pair (the first; others where nothing was dropped before them); the rest
stands in the reasons. ``cluster`` is that of the first step that has clusters, -1 for the pairs it did not see.

Shapes: N pairs of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from tldr.check import is_number
from tldr.pairs import Pairs
from tldr.selector.base import Combination, Selection, Selector, Target
from tldr.signal.store import Signals


def counts(total: int, keep: int, steps: int, shares: Sequence[float] | None) -> list[int]:
    """How many pairs every step leaves, ``keep`` after the last. ``shares`` says for every step but the last which
    share of what it is given; None: each leaves the same share, so that these make ``keep / total``. Raises ValueError
    where they would leave fewer than ``keep``."""
    if shares is None:
        return [round(total * (keep / total) ** (step / steps)) for step in range(1, steps)] + [keep]
    left = _left(total, shares)
    if left[-1] < keep:
        raise ValueError(
            f"selector.shares={list(shares)} leaves the last step {left[-1]} of {total} pairs, too few to keep "
            f"{keep}; raise the shares, or compression"
        )
    return [*left[1:], keep]


def _left(total: int, shares: Sequence[float]) -> list[int]:
    """``total``, and what is left of it after each step that keeps its share."""
    return list(accumulate(shares, lambda left, share: round(left * share), initial=total))


class Chain(Combination):
    """``steps`` in their order. ``shares``, one for each step but the last, inside (0, 1], say how much of what it is
    given a step keeps; by default, all steps keep the same share."""

    def __init__(
        self,
        *,
        steps: Sequence[Selector],
        names: Sequence[str] | None = None,
        shares: Sequence[float] | None = None,
        target: Any = None,
    ) -> None:
        super().__init__(steps=steps, names=names, target=target)
        if shares is not None and not (
            isinstance(shares, Sequence)
            and len(shares) == len(steps) - 1
            and all(is_number(share) and 0 < share <= 1 for share in shares)
        ):
            raise ValueError(
                f"selector.shares={shares}: {len(steps)} steps take {len(steps) - 1} shares inside (0, 1]: "
                "for each step but the last, the share of its input that it keeps"
            )
        self.shares = shares

    def most(self, total: int) -> int:
        """What ``shares`` leave the last step."""
        return _left(total, self.shares or ())[-1]

    def choose(
        self,
        pool: Pairs,
        signals: Signals | None,
        *,
        keep: int,
        seed: int,
        target: Target | None = None,
        writer: Any = None,
    ) -> Selection:
        """Narrow the pool and its signals step by step. The reason of a pair is that of the step that dropped it, or
        of the last one."""
        rows, reasons, scores = np.arange(len(pool)), np.empty(len(pool), object), {}
        for (name, step), left in zip(
            self.steps.items(), counts(len(pool), keep, len(self.steps), self.shares), strict=True
        ):
            whole = len(rows) == len(pool)
            seen, view = (
                (pool, signals) if whole else (pool.take(rows), signals.at(rows) if signals is not None else None)
            )
            selection = step(seen, view, keep=left, seed=seed, target=target, writer=writer)
            reasons[rows] = [f"{name}: {reason}" for reason in selection.reasons]
            if whole:
                scores |= {f"{name}.{key}": values for key, values in selection.scores.items() if key != "cluster"}
            if "cluster" in selection.scores and "cluster" not in scores:
                scores["cluster"] = np.full(len(pool), -1, np.int64)
                scores["cluster"][rows] = selection.scores["cluster"]
            rows = rows[selection.rows]
        return Selection(rows, reasons.tolist(), scores)
