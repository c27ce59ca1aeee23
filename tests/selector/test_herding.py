import numpy as np
import pytest

from tldr.selector.herding import Herding, herd

N = 300


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def rows(values) -> np.ndarray:
    rng = np.random.default_rng(3)
    rows = normal(rng.standard_normal((N, 16)) + rng.exponential(1, (N, 1)) * np.eye(16)[0]).astype(np.float32)
    values["clip.embedding"] = rows
    return rows


def test_herding_as_it_is_written(rows):
    """w grows by mu - x, and the next x maximises <w, x>."""
    order, gaps = herd(rows, 60)
    mean = rows.mean(0, dtype=np.float64)
    w, free = mean.copy(), np.ones(N, bool)
    for number in range(60):
        best = np.where(free, rows @ w, -np.inf).argmax()
        assert order[number] == best
        free[best] = False
        w += mean - rows[best]
        assert gaps[number] == pytest.approx(np.linalg.norm(rows[order[: number + 1]].mean(0) - mean), abs=1e-5)


@pytest.mark.parametrize(("rows_per_cluster", "parts"), [(2000, 1), (60, 5)])
def test_the_mean_is_that_of_the_pool(pool, values, rows, store, rows_per_cluster, parts):
    selection = Herding(rows_per_cluster=rows_per_cluster)(pool, store(values), keep=60, seed=0)
    mean = rows.mean(0)
    gap = np.linalg.norm(rows[selection.rows].mean(0) - mean)
    draws = [np.random.default_rng(seed).choice(N, 60, replace=False) for seed in range(50)]
    drawn = [np.linalg.norm(rows[draw].mean(0) - mean) for draw in draws]
    assert selection.scores["cluster"].max() == parts - 1
    assert gap < min(drawn)


def test_parts_keep_their_share(pool, values, rows, store):
    selection = Herding(rows_per_cluster=60)(pool, store(values), keep=60, seed=0)
    cluster = selection.scores["cluster"]
    assert np.bincount(cluster[selection.rows]) == pytest.approx(np.bincount(cluster) / 5, abs=1)


def test_all_and_none_of_a_part(rows):
    assert len(herd(rows, 0)[0]) == 0
    order, gaps = herd(rows, N)
    assert np.array_equal(np.sort(order), np.arange(N))
    assert gaps[-1] == pytest.approx(0, abs=1e-6)


def test_reasons_tell_the_pick(pool, values, rows, store):
    selection = Herding()(pool, store(values), keep=60, seed=0)
    pick = selection.scores["pick"]
    assert np.array_equal(np.sort(pick[selection.rows]), np.arange(1, 61))
    for row in range(N):
        told = f"pick {pick[row]} of 60 in cluster 0" if pick[row] else "not among the 60 of 300 that match"
        assert selection.reasons[row].startswith(told)


def test_errors_name_the_option():
    with pytest.raises(ValueError, match=r"selector\.rows_per_cluster=0 must be at least 1"):
        Herding(rows_per_cluster=0)
