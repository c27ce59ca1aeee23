import numpy as np
import pytest

from tldr.selector.k_center import FIRST, KCenter, farthest_first

N = 300


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reach(rows: np.ndarray, kept: np.ndarray) -> float:
    """The cosine distance of the worst served pair to a kept one."""
    return float((1 - (rows @ rows[kept].T).max(1)).max())


@pytest.fixture
def rows(values) -> np.ndarray:
    rows = normal(np.random.default_rng(3).standard_normal((N, 16))).astype(np.float32)
    values["clip.embedding"] = rows
    return rows


def test_the_farthest_is_next(rows):
    radius, place = farthest_first(rows, 17)
    order = np.argsort(place)
    assert order[0] == 17
    assert radius[17] == FIRST
    for number in range(1, N):
        distance = 1 - (rows @ rows[order[:number]].T).max(1)
        assert distance[order[number]] == pytest.approx(distance.max(), abs=1e-5)
        assert radius[order[number]] == pytest.approx(distance.max(), abs=1e-5)


def test_a_pool_of_one_part_is_searched_whole(pool, values, rows, store):
    selection = KCenter()(pool, store(values), keep=40, seed=0)
    radius = selection.scores["radius"]
    dropped = np.setdiff1d(np.arange(N), selection.rows)
    assert reach(rows, selection.rows) == pytest.approx(radius[dropped].max(), abs=1e-5)
    draws = [np.random.default_rng(seed).choice(N, 40, replace=False) for seed in range(50)]
    assert reach(rows, selection.rows) < min(reach(rows, draw) for draw in draws)


def test_every_scene_is_reached(pool, values, store):
    """Forty scenes, forty pairs: one of each."""
    rng = np.random.default_rng(3)
    scene = rng.integers(40, size=N)
    centres = normal(rng.standard_normal((40, 16)))
    values["clip.embedding"] = normal(centres[scene] + 0.01 * rng.standard_normal((N, 16))).astype(np.float32)
    for rows_per_cluster in (2000, 50):  # whole, and in six parts
        kept = KCenter(rows_per_cluster=rows_per_cluster)(pool, store(values), keep=40, seed=0).rows
        assert len(set(scene[kept])) == 40


def test_parts_are_covered_to_one_radius(pool, values, rows, store):
    selection = KCenter(rows_per_cluster=50)(pool, store(values), keep=90, seed=0)
    radius, cluster = selection.scores["radius"], selection.scores["cluster"]
    kept = np.zeros(N, bool)
    kept[selection.rows] = True
    assert len(np.unique(cluster)) == 6
    assert radius[kept].min() >= radius[~kept].max()
    for c in range(6):
        inside = np.flatnonzero(cluster == c)
        assert (radius[inside] == FIRST).sum() == 1
        far = 1 - (rows[inside] @ rows[inside[kept[inside]]].T).max(1)
        assert far.max() <= radius[kept].min() + 1e-5


def test_fewer_pairs_than_parts(pool, values, rows, store):
    selection = KCenter(rows_per_cluster=10)(pool, store(values), keep=3, seed=0)
    assert len(np.unique(selection.scores["cluster"])) == 3


def test_reasons_tell_the_radius(pool, values, rows, store):
    selection = KCenter()(pool, store(values), keep=40, seed=0)
    radius = selection.scores["radius"]
    cut = radius[selection.rows].min()
    for row in np.setdiff1d(np.arange(N), selection.rows):
        assert selection.reasons[row].startswith(f"{radius[row]:.3g} from the nearest picked before, pick ")
        assert selection.reasons[row].endswith(f"cut at {cut:.3g}")


def test_errors_name_the_option():
    with pytest.raises(ValueError, match=r"selector\.rows_per_cluster=0 must be at least 1"):
        KCenter(rows_per_cluster=0)


def test_what_equals_a_pick_is_not_searched(monkeypatch):
    """Of a picture that stands there a thousand times, one is picked: the rest costs no comparison."""
    rng, asked = np.random.default_rng(0), []
    rows = normal(rng.standard_normal((6, 8))).astype(np.float32)[np.r_[0:6, [2] * 1000]]

    def counted(rows):
        return lambda row: asked.append(row) or rows @ rows[row]

    monkeypatch.setattr("tldr.selector.k_center.similarities", counted)
    radius, place = farthest_first(rows, 3)
    assert len(asked) == 6
    assert sorted(place) == list(range(1006))
    assert np.count_nonzero(radius) == 6
    assert place[6:].tolist() == list(range(6, 1006))
