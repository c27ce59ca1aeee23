import numpy as np
import pytest

from tldr.report.truth import planted


def test_shares_of_what_was_planted(pool):
    assert planted(pool, np.arange(40)) == {"mismatched": 0.25, "duplicates": 0.25}
    assert planted(pool, np.array([0, 30, 31, 32])) == {"mismatched": 0.5, "duplicates": 0.25}


def test_a_pair_repeats_only_pairs_that_are_there(pool):
    assert planted(pool, np.arange(30, 40))["duplicates"] == 0


def test_a_pool_that_knows_only_its_duplicates(make_pool):
    pool = make_pool(6, truth_scene=[1, 1, 1, 2, 3, 4])
    assert planted(pool, np.arange(6)) == {"duplicates": pytest.approx(1 / 3)}


def test_of_no_pairs_nothing_is_told(pool):
    assert planted(pool, np.empty(0, np.int64)) == {}


def test_a_pool_without_truth(pool):
    assert planted(pool.without_truth(), np.arange(40)) == {}
