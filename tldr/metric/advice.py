"""How far can a data set be reduced? A curve through what was measured at a few compressions, and the compression at
which the loss against all pairs first exceeds a tolerance.

The curve is d(x) = a x + b x^2, where d is the score less that of all pairs at the same seed, c the compression (share
removed) and x = -log(1 - c): halving the data again is the same step wherever one stands, and at x = 0 a selection is
all pairs, so d is 0. With a single compression b is 0. Least squares; the interval is a bootstrap over seeds (Efron
1979), whose deviations are widened by sqrt(n / (n - 1)), for a mean of n resampled seeds varies too little. With three
seeds it remains a rough guide. Nothing is said beyond the largest compression that was measured.

Shapes: n seeds, r compressions, B bootstrap samples, G points of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

GRID = 400


@dataclass(frozen=True)
class Curve:
    """``compression`` (G,) from 0 to the largest that was measured; ``difference`` (G,) against all pairs; ``low`` and
    ``high`` (G,) its 95 % interval, NaN with one seed. ``recommended`` is the largest compression before the loss first
    exceeds the ``tolerance``, ``earliest`` and ``latest`` its interval (equal to it with one seed), ``whole`` whether
    the loss stays within the tolerance up to the end. ``residual`` is the root mean square of what the curve misses of
    the means; ``seeds`` are those that have been measured at every compression, which alone count."""

    compression: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tolerance: float
    recommended: float
    earliest: float
    latest: float
    residual: float
    seeds: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Did the loss never exceed the tolerance?"""
        return self.recommended >= self.compression[-1]

    def __str__(self) -> str:
        reached = f"{'≥ ' if self.whole else ''}{percent(self.recommended)}"
        if percent(self.earliest) != percent(self.latest):
            reached += f" [{percent(self.earliest)}, {percent(self.latest)}]"
        misses = f", fit off by {self.residual:.1f}" if self.residual > max(self.tolerance, 0.05) else ""
        return f"{reached} ({len(self.seeds)}{misses})"


def percent(compression: float) -> str:
    """In whole percent up to 99: beyond, what is left matters."""
    return f"{compression:.0%}" if compression <= 0.99 else f"{100 * compression:.6g}%"


def advise(
    scores: Mapping[float, Mapping[int, float]],
    full: Mapping[int, float],
    *,
    tolerance: float,
    samples: int = 1000,
    seed: int = 0,
) -> Curve | None:
    """The curve of a method: ``scores`` by compression, then by seed; ``full`` is the score of all pairs by seed.

    Takes the seeds that ``full`` and every compression have; None if there is none. Raises ValueError for a compression
    outside (0, 1) or a negative tolerance."""
    if tolerance < 0:
        raise ValueError(f"tolerance={tolerance}; it is a loss of score, at least 0")
    ratios = np.array(sorted(scores))
    if not len(ratios):
        return None
    if ratios[0] <= 0 or ratios[-1] >= 1:
        raise ValueError(f"compressions {ratios.tolist()}; each is the share removed, inside (0, 1)")
    seeds = sorted(set(full).intersection(*scores.values()))
    if not seeds:
        return None
    paired = np.array([[scores[ratio][s] - full[s] for ratio in ratios.tolist()] for s in seeds])  # (n, r)
    x = -np.log1p(-ratios)
    design = np.stack([x, x**2], 1) if len(ratios) > 1 else x[:, None]
    solve = np.linalg.pinv(design)  # (1 or 2, r): the fit is linear in the means
    compression = np.linspace(0, ratios[-1], GRID)
    at = -np.log1p(-compression)
    basis = np.stack([at, at**2], 1)[:, : design.shape[1]]

    mean = paired.mean(0)
    coefficients = solve @ mean
    difference = basis @ coefficients
    residual = float(np.sqrt(np.mean((design @ coefficients - mean) ** 2)))
    before = np.append(compression[np.searchsorted(compression, ratios) - 1], compression[-1])  # (r + 1,)

    def within(means: np.ndarray, curves: np.ndarray) -> np.ndarray:
        """(B, r), (B, G) -> (B,): what was measured says more than the curve through it."""
        lost = np.pad(means < -tolerance - 1e-9, ((0, 0), (0, 1)), constant_values=True)
        return np.minimum(_last_within(compression, curves, tolerance), before[lost.argmax(1)])

    recommended = float(within(mean[None], difference[None])[0])
    count, unknown = len(seeds), np.full(GRID, np.nan)
    low, high, earliest, latest = unknown, unknown, recommended, recommended
    if count > 1:
        drawn = np.random.default_rng(seed).integers(count, size=(samples, count))
        means = mean + np.sqrt(count / (count - 1)) * (paired[drawn].mean(1) - mean)  # (B, r)
        curves = means @ solve.T @ basis.T  # (B, G)
        low, high = np.percentile(curves, [2.5, 97.5], axis=0)
        earliest, latest = map(float, np.percentile(within(means, curves), [2.5, 97.5]))
    return Curve(compression, difference, low, high, tolerance, recommended, earliest, latest, residual, tuple(seeds))


def _last_within(compression: np.ndarray, curves: np.ndarray, tolerance: float) -> np.ndarray:
    """(B, G) differences -> (B,) the compression before the loss first exceeds the tolerance."""
    beyond = curves < -tolerance - 1e-9
    first = np.where(beyond.any(1), beyond.argmax(1), len(compression))
    return compression[first - 1]  # at 0 the difference is 0, so that first is never 0
