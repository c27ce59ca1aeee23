import numpy as np
import pytest

from tldr.selector.d4 import D4

N = 300


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def copies(values) -> np.ndarray:
    """(N,) true for 60 pictures that are all the same; the others lie about six corners."""
    rng = np.random.default_rng(3)
    rows = normal(np.eye(6, 16)[rng.integers(6, size=N)] + 0.15 * rng.standard_normal((N, 16)))
    same = rng.permutation(N) < 60
    rows[same] = normal(np.ones((1, 16)))
    values["clip.embedding"] = rows.astype(np.float32)
    return same


def test_only_duplicates_go_while_they_are_enough(pool, values, copies, store):
    selection = D4()(pool, store(values), keep=241, seed=0)
    assert copies[selection.rows].sum() == 1
    assert sum(reason.startswith("duplicate of ") for reason in selection.reasons) == 59


def test_then_the_most_ordinary(pool, values, copies, store):
    """0.8 of the pool is left by the first step, and of it stays what is farthest from the new centroids."""
    selection = D4(dedup=0.8, rows_per_cluster=40)(pool, store(values), keep=100, seed=0)
    cluster, distance = selection.scores["cluster"], selection.scores["distance"]
    left = cluster >= 0
    assert left.sum() == 240
    assert cluster.max() == 5  # one for 40 of those that are left
    kept = np.zeros(N, bool)
    kept[selection.rows] = True
    assert not kept[~left].any()
    assert distance[kept].min() >= distance[left & ~kept].max()
    rows = values["clip.embedding"]
    for c in range(6):  # the centroids are those of what is left
        inside = np.flatnonzero(cluster == c)
        centre = normal(rows[inside].mean(0, keepdims=True))[0]
        assert distance[inside] == pytest.approx(1 - rows[inside] @ centre, abs=0.02)


def test_without_the_first_step_it_is_prototype_pruning(pool, values, copies, store):
    selection = D4(dedup=1, rows_per_cluster=40)(pool, store(values), keep=100, seed=0)
    assert (selection.scores["cluster"] >= 0).all()
    assert copies[selection.rows].sum() == 0  # copies make a cluster of their own, and are its centre


def test_more_than_the_first_step_keeps(pool, values, copies, store):
    dropped = np.setdiff1d(np.arange(N), D4()(pool, store(values), keep=290, seed=0).rows)
    assert len(dropped) == 10
    assert copies[dropped].all()


def test_reasons_say_which_step_decided(pool, values, copies, store):
    selection = D4()(pool, store(values), keep=100, seed=0)
    similarity, distance = selection.scores["similarity"], selection.scores["distance"]
    for row in range(N):
        if selection.scores["cluster"][row] < 0:
            assert selection.reasons[row].endswith(f", similarity {similarity[row]:.4g}")
        else:
            assert selection.reasons[row].startswith(f"{distance[row]:.3g} from the centre of cluster ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dedup": 0}, r"selector\.dedup=0: the share kept by SemDeDup, inside \(0, 1\]"),
        ({"choice": "best"}, r"selector\.choice='best'; choose from hard, easy, random"),
        ({"rows_per_cluster": 0}, r"selector\.rows_per_cluster=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        D4(**options)
