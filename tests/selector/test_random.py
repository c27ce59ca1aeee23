from itertools import pairwise

import numpy as np
import pytest

from tldr.selector.random import Random


def test_every_pair_is_as_likely(pool):
    counts = np.zeros(300)
    together = 0
    for seed in range(400):
        rows = Random()(pool, None, keep=75, seed=seed).rows
        counts[rows] += 1
        together += {0, 1} <= set(rows)
    expected = 400 / 4
    statistic = float(((counts - expected) ** 2 / (expected * 0.75)).sum())  # chi-square of about 299 degrees
    assert 220 < statistic < 390
    assert together == pytest.approx(400 * 75 * 74 / (300 * 299), abs=15)  # neighbours are no company


def test_a_larger_draw_contains_the_smaller(pool):
    draws = [set(Random()(pool, None, keep=keep, seed=5).rows) for keep in (1, 30, 75, 150, 300)]
    assert all(small < large for small, large in pairwise(draws))
    assert draws[2] != set(range(75))
    assert set(Random()(pool, None, keep=75, seed=6).rows) != draws[2]


def test_the_reason_is_the_place_in_the_draw(pool):
    selection = Random()(pool, None, keep=75, seed=0)
    place = selection.scores["draw"]
    assert sorted(place) == list(range(1, 301))
    assert set(np.flatnonzero(place <= 75)) == set(selection.rows)
    first, last = int(place.argmin()), int(place.argmax())
    assert selection.reasons[first] == "drawn 1 of 75"
    assert selection.reasons[last] == "drawn 300, after 75"
