import math
from itertools import pairwise

import pytest

from tldr.metric.paired import compare, interval, t_probability, t_quantile

# Two-sided 95 % and 99 % points of Student's t, from the printed tables.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032),
         9: (2.262, 3.250), 10: (2.228, 3.169), 30: (2.042, 2.750), 120: (1.980, 2.617)}  # fmt: skip


@pytest.mark.parametrize("freedom", TABLE)
def test_students_points_are_those_of_the_tables(freedom):
    for confidence, expected in zip((0.95, 0.99), TABLE[freedom], strict=True):
        found = t_quantile(confidence, freedom)
        assert found == pytest.approx(expected, abs=6e-4)
        assert t_probability(found, freedom) == pytest.approx(confidence, abs=1e-12)


def test_students_distribution_nears_the_normal_one():
    assert t_probability(1.5, 100_000) == pytest.approx(math.erf(1.5 / math.sqrt(2)), abs=1e-5)
    assert t_probability(1.0, 1) == pytest.approx(0.5)  # Cauchy's
    assert t_probability(1.0, 2) == pytest.approx(1 / math.sqrt(3))
    assert all(more < less for less, more in pairwise(t_quantile(0.95, n) for n in range(1, 30)))


def test_interval_of_three_numbers_by_hand():
    found = interval([1.0, 2.0, 6.0])
    assert (found.mean, found.seeds) == (3.0, 3)
    assert found.half == pytest.approx(4.3027 * math.sqrt(7 / 3), rel=1e-4)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)
    assert str(found) == "3.0 ± 6.6"
    assert str(interval([2.0])) == "2.0"
    with pytest.raises(ValueError, match="one value at least"):
        interval([])


def test_pairs_tell_apart_what_means_do_not():
    """Seeds vary by tens of points, the two methods by two: unpaired the intervals overlap."""
    base = {0: 10.0, 1: 40.0, 2: 70.0}
    shifted = {0: 12.0, 1: 41.9, 2: 72.1}
    found = compare(shifted, base)
    assert found is not None
    assert found.verdict == "better"
    assert found.difference.seeds == 3
    assert interval(list(shifted.values())).low < interval(list(base.values())).high
    other = compare(base, shifted)
    assert other is not None
    assert (other.verdict, other.difference.mean) == ("worse", -found.difference.mean)


def test_a_difference_within_the_noise_is_none():
    found = compare({0: 10.0, 1: 12.0, 2: 17.0}, {0: 9.0, 1: 14.0, 2: 12.0})
    assert found is not None
    assert found.verdict == "indistinguishable"


def test_only_shared_seeds_count():
    found = compare({0: 5.0, 1: 6.0, 7: 100.0}, {0: 1.0, 1: 2.0, 8: -100.0})
    assert found is not None
    assert (found.verdict, found.difference.mean, found.difference.seeds) == ("better", 4.0, 2)
    one = compare({0: 5.0}, {0: 1.0})
    assert one is not None
    assert one.verdict == "unknown"
    assert compare({0: 5.0}, {1: 1.0}) is None


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="confidence=1"):
        t_quantile(1, 3)
    with pytest.raises(ValueError, match="freedom=0"):
        t_probability(1.0, 0)
