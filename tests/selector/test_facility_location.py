import numpy as np
import pytest

from tldr.selector import facility_location
from tldr.selector.facility_location import FacilityLocation, graph, lazy_greedy

N = 300


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def rows(values) -> np.ndarray:
    rows = normal(np.random.default_rng(3).standard_normal((N, 16))).astype(np.float32)
    values["clip.embedding"] = rows
    return rows


def dense(starts: np.ndarray, ends: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The graph as a matrix (N, N), 0 where there is no edge."""
    matrix = np.zeros((len(starts) - 1,) * 2, np.float32)
    matrix[np.repeat(np.arange(len(starts) - 1), np.diff(starts)), ends] = similarity
    return matrix


def test_the_graph_has_the_nearest_in_either_direction(rows):
    matrix = dense(*graph(rows, 8, seed=0))
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, 1)
    near = cosine >= -np.sort(-cosine, 1)[:, 8:9]
    assert matrix == pytest.approx(np.where((near | near.T) & (cosine > 0), cosine, 0), abs=1e-5)
    assert (matrix.diagonal() == 1).all()


def test_lazy_greedy_is_greedy(rows):
    """The same picks and gains as when every gain is computed every time."""
    found = graph(rows, 8, seed=0)
    matrix = dense(*found)
    picks, gains = lazy_greedy(*found, 60)
    covered, free = np.zeros(N, np.float32), np.ones(N, bool)
    for pick, gain in zip(picks, gains, strict=True):
        every = np.where(free, np.maximum(matrix - covered, 0).sum(1), -1)
        assert gain == pytest.approx(every.max(), abs=1e-4)
        assert every[pick] == pytest.approx(every.max(), abs=1e-4)
        free[pick] = False
        covered = np.maximum(covered, matrix[pick])
    assert (np.diff(gains) <= 1e-5).all()


def test_the_kept_stand_for_the_pool(pool, values, rows, store):
    kept = FacilityLocation(neighbours=N - 1)(pool, store(values), keep=30, seed=0).rows
    value = np.maximum(rows @ rows.T, 0)
    draws = [np.random.default_rng(seed).choice(N, 30, replace=False) for seed in range(50)]
    assert value[:, kept].max(1).sum() > max(value[:, draw].max(1).sum() for draw in draws)


def test_one_of_every_scene_is_first(pool, values, store):
    """Scenes of many pairs before scenes of few, and each of them once."""
    rng = np.random.default_rng(3)
    scene = np.repeat(np.arange(20), np.arange(5, 25))[rng.permutation(290)]
    scene = np.concatenate([scene, np.full(10, 19)])
    centres = np.eye(20, 32)
    values["clip.embedding"] = normal(centres[scene] + 0.01 * rng.standard_normal((N, 32))).astype(np.float32)
    signals = store(values)
    few = FacilityLocation(neighbours=40)(pool, signals, keep=5, seed=0).rows
    assert sorted(scene[few]) == [15, 16, 17, 18, 19]
    assert len(set(scene[FacilityLocation(neighbours=40)(pool, signals, keep=20, seed=0).rows])) == 20


def test_a_large_pool_is_searched_by_cells(rows, monkeypatch):
    exact = dense(*graph(rows, 8, seed=0))
    monkeypatch.setattr(facility_location, "EXACT", 100)
    monkeypatch.setattr(facility_location, "PROBES", 17)  # that is all
    assert dense(*graph(rows, 8, seed=0)) == pytest.approx(exact, abs=1e-5)
    monkeypatch.setattr(facility_location, "PROBES", 4)
    rough = dense(*graph(rows, 8, seed=0))
    shared = (rough > 0) & (exact > 0)
    assert 0.5 < shared.sum() / (exact > 0).sum() < 1
    assert rough[shared] == pytest.approx(exact[shared], abs=1e-5)


def test_reasons_name_who_covers(pool, values, rows, store):
    selection = FacilityLocation(neighbours=8)(pool, store(values), keep=60, seed=0)
    uids, matrix = pool.uids.to_pylist(), dense(*graph(rows, 8, seed=0))
    best = matrix[:, selection.rows]
    gain = selection.scores["gain"]
    for row in range(N):
        told = selection.reasons[row]
        if row in selection.rows:
            assert told.startswith("pick ")
            assert told.endswith(f" of 60, gain {gain[row]:.3g}")
        elif best[row].max() > 0:
            twin = selection.rows[best[row].argmax()]
            assert told.startswith(f"covered by {uids[twin]}, similarity {best[row].max():.3g}; least gain")
        else:
            assert told.startswith("not among 60, and covered by none")


def test_exact_copies_are_not_needed(pool, values, rows, store):
    rows[150:] = rows[:150]
    selection = FacilityLocation(neighbours=8)(pool, store(values), keep=150, seed=0)
    assert len({row % 150 for row in selection.rows}) == 150


def test_errors_name_the_option():
    with pytest.raises(ValueError, match=r"selector\.neighbours=0 must be at least 1"):
        FacilityLocation(neighbours=0)
