"""What was planted in a pool, and how much of it is left, for pools that know (`tldr.data.shapes`). No selector reads
this.

Shapes: N pairs of the pool, n of its rows.
"""

from __future__ import annotations

import numpy as np

from tldr.pairs import Pairs

MISMATCHED, SCENE = "truth_mismatched", "truth_scene"


def planted(pool: Pairs, rows: np.ndarray) -> dict[str, float]:
    """Of the pairs at ``rows`` (n,): the share whose caption is another picture's (``mismatched``), and the share
    that repeats another of these pairs (``duplicates``). Empty where the pool has no ground truth, or n is 0."""
    names = pool.table.column_names if len(rows) else []
    found = {}
    if MISMATCHED in names:
        found["mismatched"] = float(pool.column(MISMATCHED)[rows].mean())
    if SCENE in names:
        found["duplicates"] = 1 - len(np.unique(pool.column(SCENE)[rows])) / len(rows)
    return found
