"""What all of several selectors, or any of them, would keep. DataComp's best filter is an intersection (Gadre et al.
2023, arXiv 2304.14108, section 5).

Every step keeps its best m of the pool, with the smallest m for which at least ``keep`` pairs are kept by all of them
(`Intersect`) or by any (`Union`). m is found by bisection. A step that ranks the pool is run twice: for its merit, and
for its reasons at m; any other about log2(N) times. m is the smallest if a step that keeps more also keeps all that it
kept before, as with a score; else it is an m that is enough where m - 1 is not. If there are more than ``keep`` pairs,
those that m - 1 would not give are dropped again, the last by uid first.

Shapes: N pairs of the pool, S steps.
"""

from __future__ import annotations

import io
import sys
from abc import abstractmethod
from contextlib import redirect_stdout
from typing import Any, cast

import numpy as np

from tldr.pairs import Pairs
from tldr.selector.base import Combination, Selection, Target, ranked
from tldr.signal.store import Signals


class _Vote(Combination):
    """A pair is found that at least `votes` steps have among their best m."""

    @property
    @abstractmethod
    def votes(self) -> int:
        """How many steps it takes."""

    @abstractmethod
    def bounds(self, most: int, keep: int) -> tuple[int, int]:
        """The smallest m that may give ``keep`` pairs, and the largest that is tried, at ``most``."""

    def most(self, total: int) -> int:
        """What all steps can be asked for."""
        return min(step.most(total) for step in self.steps.values())

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
        """Every step sees the whole pool, so that all scores are known; ``cluster`` is that of the first step that has
        clusters."""

        places: dict[str, np.ndarray] = {}  # (N,) of every pair, by the steps that have ranked the pool
        last: dict[str, tuple[int, Selection]] = {}  # what the steps said last, and of how many to keep
        given = {"seed": seed, "target": target, "writer": writer}

        def say(name: str, depth: int) -> Selection:
            """What a step says when it keeps ``depth`` pairs; its notices are those of the first time."""
            if last.get(name, (0,))[0] != depth:
                with redirect_stdout(io.StringIO() if name in last else cast(Any, sys.stdout)):
                    last[name] = depth, self.steps[name](pool, signals, keep=depth, **given)
            told = last[name][1]
            if told.merit is not None and name not in places:
                places[name] = np.argsort(ranked(told.merit))
            return told

        def held(depth: int) -> np.ndarray:
            """(S, N): which pairs each step keeps when it keeps ``depth``."""
            kept = np.zeros((len(self.steps), len(pool)), bool)
            for name, row in zip(self.steps, kept, strict=True):
                if depth and name not in places:
                    row[say(name, depth).rows] = True
                if name in places:
                    row[:] = places[name] < depth
            return kept

        most = self.most(len(pool))
        low, depth = self.bounds(most, keep)
        low -= 1  # too few, from here on
        enough, before = None, None
        while depth - low > 1:
            middle = (low + depth) // 2
            tried = held(middle)
            if (tried.sum(0) >= self.votes).sum() >= keep:
                depth, enough = middle, tried
            else:
                low, before = middle, tried
        among = held(depth) if enough is None else enough
        found = among.sum(0) >= self.votes
        rows = np.flatnonzero(found)
        if len(rows) < keep:
            raise ValueError(
                f"selector.steps: from {depth} pairs of each, the most that selector.shares of a chain leave, "
                f"{len(rows)} are found, fewer than the {keep} to keep; raise the shares, or compression"
            )
        if len(rows) > keep:
            first = (held(low) if before is None else before).sum(0) >= self.votes
            rows = np.sort(rows[np.argsort(~first[rows], kind="stable")[:keep]])
        kept = np.zeros(len(pool), bool)
        kept[rows] = True
        told = [say(name, depth) for name in self.steps]
        reasons = self._reasons(told, among, found, kept, depth)
        scores = {}
        for name, one in zip(self.steps, told, strict=True):
            scores |= {f"{name}.{key}": values for key, values in one.scores.items() if key != "cluster"}
            if "cluster" in one.scores:
                scores.setdefault("cluster", one.scores["cluster"])
        return Selection(rows, reasons, scores)

    def _reasons(
        self, told: list[Selection], held: np.ndarray, found: np.ndarray, kept: np.ndarray, depth: int
    ) -> list[str]:
        """The reasons of the steps that decided: those that have a pair which was found, or have not the others."""
        reasons = []
        for row, votes in enumerate(held.T):
            decided = [
                f"of {name}: {one.reasons[row]}"
                for name, one, vote in zip(self.steps, told, votes, strict=True)
                if vote == found[row]
            ]
            where = f"{'' if found[row] else 'not '}among the best {depth} {'; '.join(decided)}"
            spare = found[row] and not kept[row]
            reasons.append(
                f"one of {found.sum() - kept.sum()} too many, the last to come in; {where}" if spare else where
            )
        return reasons


class Intersect(_Vote):
    """The pairs that all ``steps`` keep."""

    @property
    def votes(self) -> int:
        """All of them."""
        return len(self.steps)

    def bounds(self, most: int, keep: int) -> tuple[int, int]:
        """At least ``keep`` each; where ``most`` is the whole pool, all are found with it."""
        return keep, most


class Union(_Vote):
    """The pairs that any of ``steps`` keeps."""

    @property
    def votes(self) -> int:
        """One."""
        return 1

    def bounds(self, most: int, keep: int) -> tuple[int, int]:
        """At least an equal part each; with ``keep``, one step does."""
        return -(-keep // len(self.steps)), min(keep, most)
