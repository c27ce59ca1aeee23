"""A decisions table made readable: what was kept, by which scores, and which pairs to show for it.

Shapes: N pairs of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from tldr.pairs import Pairs

_EXTREME = 50  # an extreme of the kept is their last 1/50: its most extreme dozen would be outliers, not examples


@dataclass(frozen=True)
class Gallery:
    """Pairs to look at together: ``rows`` of the pool, and in words what they have in common."""

    title: str
    note: str
    rows: np.ndarray


class Decisions:
    """The decisions on every pair of ``pool`` (`Selection.decisions`). Raises ValueError where they are of another
    pool."""

    def __init__(self, pool: Pairs, table: pa.Table) -> None:
        if not table["uid"].cast(pa.large_string()).equals(pool.uids):
            raise ValueError(f"these {table.num_rows} decisions are not of this pool of {len(pool)} pairs: other uids")
        self.pool, self.table = pool, table
        self.kept: np.ndarray = table["kept"].to_numpy()  # (N,) bool
        names = [field.name for field in table.schema if pa.types.is_floating(field.type)]
        names.sort(key=lambda name: name != "alignment")
        self.scores: dict[str, np.ndarray] = {name: table[name].to_numpy() for name in names}  # each (N,)

    @cached_property
    def cluster(self) -> np.ndarray | None:
        """(N,) cluster of every pair, or None where the method has none, or a single one, which tells nobody apart."""
        cluster = self.table["cluster"].to_numpy()
        return cluster if len(np.unique(cluster[cluster >= 0])) > 1 else None

    def reason(self, row: int) -> str:
        """Why this pair was kept or dropped."""
        return self.table["reason"][row].as_py()

    def galleries(self, count: int, *, seed: int) -> list[Gallery]:
        """At most ``count`` pairs each from both ends of the kept and of the dropped, by the score that tells these
        apart best; where there is none, drawn. Which end is the better one is seen from what was kept."""
        rng = np.random.default_rng(seed)
        kept, dropped = np.flatnonzero(self.kept), np.flatnonzero(~self.kept)
        if not self.scores:
            return [
                Gallery("Kept", "drawn at random", _draw(kept, 2 * count, rng)),
                Gallery("Dropped", "drawn at random", _draw(dropped, 2 * count, rng)),
            ]
        gaps = {name: self._gap(score) for name, score in self.scores.items()}
        name = max(gaps, key=lambda name: abs(gaps[name]))
        score, rises = self.scores[name], gaps[name] >= 0
        high, low = ("highest", "lowest") if rises else ("lowest", "highest")
        kept, dropped = (
            rows[np.argsort(-score[rows] if rises else score[rows], kind="stable")] for rows in (kept, dropped)
        )
        ends = [
            ("Best kept", f"{high} {name} of the kept", _head(kept, count)),
            ("Borderline, kept", f"{low} {name} of the kept", _tail(kept, count)),
            ("Borderline, dropped", f"{high} {name} of the dropped", _head(dropped, count)),
            ("Worst dropped", f"{low} {name} of the dropped", _tail(dropped, count)),
        ]
        return [Gallery(title, note, _draw(rows, count, rng)) for title, note, rows in ends if len(rows)]

    def _gap(self, score: np.ndarray) -> float:
        """By how many standard deviations the kept are above the dropped; 0 where either is empty or all are equal."""
        if self.kept.all() or not score.std():
            return 0.0
        return float((score[self.kept].mean() - score[~self.kept].mean()) / score.std())

    def divided_clusters(self, count: int, each: int, *, seed: int) -> list[tuple[int, Gallery, Gallery]]:
        """``count`` clusters of which some pairs were kept and some dropped, with at most ``each`` of both."""
        if self.cluster is None:
            return []
        rng = np.random.default_rng(seed)
        members = self.cluster >= 0
        sizes = np.bincount(self.cluster[members])
        kept = np.bincount(self.cluster[members & self.kept], minlength=len(sizes))
        shown = []
        for number in _draw(np.flatnonzero((kept > 0) & (kept < sizes)), count, rng):
            inside = self.cluster == number
            rows = [np.flatnonzero(inside & side) for side in (self.kept, ~self.kept)]
            keep, drop = (
                Gallery(name, f"{len(of)} of {sizes[number]}", _draw(of, each, rng))
                for name, of in zip(("kept", "dropped"), rows, strict=True)
            )
            shown.append((int(number), keep, drop))
        return shown


def _head(rows: np.ndarray, count: int) -> np.ndarray:
    """The first of them; never past the middle, where the tail begins."""
    return rows[: min(max(count, len(rows) // _EXTREME), (len(rows) + 1) // 2)]


def _tail(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[max(len(rows) - max(count, len(rows) // _EXTREME), (len(rows) + 1) // 2) :]


def _draw(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``count`` of them, in the order they have."""
    return rows[np.sort(rng.choice(len(rows), min(count, len(rows)), replace=False))]
