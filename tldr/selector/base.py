"""What a selector is: it keeps exactly ``keep`` pairs of a pool, and has a reason for every pair, kept or dropped.

It is deterministic in ``seed`` and, the pool being canonical, independent of the order in which the pairs were found.
It sees no ``truth_`` column.

Shapes: N pairs of the pool, n = keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from tldr.pairs import Pairs
from tldr.signal.store import Signals


@dataclass(frozen=True)
class Selection:
    """``rows`` (n,) of the pool, sorted; ``reasons``, N of them in words; ``scores``, each (N,), behind them, such as
    ``cluster`` and ``alignment``."""

    rows: np.ndarray
    reasons: list[str]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def decisions(self, pool: Pairs) -> pa.Table:
        """One row for every pair of the pool: uid, kept, reason, cluster (-1: none), scores."""
        kept = np.zeros(len(pool), bool)
        kept[self.rows] = True
        cluster = self.scores.get("cluster", np.full(len(pool), -1))
        columns = {"uid": pool.uids, "kept": kept, "reason": self.reasons, "cluster": np.asarray(cluster, np.int64)}
        return pa.table({**columns, **{name: v for name, v in self.scores.items() if name != "cluster"}})


class Selector(ABC):
    """A subclass names the signals it ``needs`` and defines `choose`."""

    needs: tuple[str, ...] = ()

    def __call__(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Keep ``keep`` pairs of ``pool``. Raises ValueError for an impossible ``keep``, or scores that are not
        finite."""
        if not 0 < keep <= len(pool):
            raise ValueError(f"cannot keep {keep} of {len(pool)} pairs; choose compression inside (0, 1)")
        with np.errstate(invalid="ignore"):  # what is not finite is refused below, by its uid
            selection = self.choose(pool.without_truth(), signals, keep=keep, seed=seed)
        for name, values in selection.scores.items():
            strange = np.flatnonzero(~np.isfinite(values))
            if len(strange):
                uids = ", ".join(pool.uids[int(row)].as_py() for row in strange[:3])
                raise ValueError(f"{name} is NaN or infinite for {len(strange)} pairs, such as {uids}")
        assert len(selection.rows) == keep == len(np.unique(selection.rows)), "a selector must keep exactly `keep` rows"
        assert len(selection.reasons) == len(pool), "a selector must give a reason for every row"
        return selection

    @abstractmethod
    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """The method itself."""


def keep_count(total: int, compression: float) -> int:
    """How many of ``total`` pairs remain when the share ``compression`` is removed."""
    if not 0 < compression < 1:
        raise ValueError(f"compression={compression}: it is the share removed, inside (0, 1); 0.75 keeps a quarter")
    keep = round(total * (1 - compression))
    if not keep:
        raise ValueError(f"compression={compression} leaves none of {total} pairs; lower it")
    return keep
