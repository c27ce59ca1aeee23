import numpy as np
import pytest

from tldr.selector.density import Density

N = 300


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def concepts(values) -> np.ndarray:
    """(N,) 0, 1 or 2: three concepts of 100 pairs, tight, loose and wide."""
    rng = np.random.default_rng(3)
    truth = rng.permutation(N) % 3
    spread = np.array([0.02, 0.1, 0.2])[truth, None]
    values["clip.embedding"] = normal(np.eye(3, 16)[truth] + spread * rng.standard_normal((N, 16))).astype(np.float32)
    return truth


def plain(**options) -> Density:
    return Density(**{"clusters": 3, "rows_per_cluster": 1, "dedup": None, "floor": 0.0} | options)


def test_complex_concepts_keep_more(pool, values, concepts, store):
    selection = plain(temperature=0.1)(pool, store(values), keep=90, seed=0)
    kept = np.bincount(concepts[selection.rows])
    assert kept[0] < kept[1] < kept[2]


def test_shares_are_those_of_the_source(pool, values, concepts, store):
    """softmax(d_inter * d_intra / tau), by hand; two of the concepts are near each other."""
    rng = np.random.default_rng(4)
    corners = normal(np.array([[1, 0, 0], [0.6, 1, 0], [0, 0, 1]]) @ np.eye(3, 16))
    values["clip.embedding"] = normal(corners[concepts] + 0.1 * rng.standard_normal((N, 16))).astype(np.float32)
    selection = plain(temperature=0.02)(pool, store(values), keep=90, seed=0)
    rows, cluster = values["clip.embedding"], selection.scores["cluster"]
    parts = [rows[cluster == c] for c in range(3)]
    centres = normal(np.stack([part.mean(0) for part in parts]))
    intra = np.array([(1 - part @ centre).mean() for part, centre in zip(parts, centres, strict=True)])
    cosine = centres @ centres.T
    inter = 1 - (cosine.sum(1) - 1) / 2
    assert np.ptp(inter) > 0.2
    share = np.exp(inter * intra / 0.02)
    assert np.bincount(cluster[selection.rows]) == pytest.approx(90 * share / share.sum(), abs=1.5)


def test_heat_makes_all_alike(pool, values, concepts, store):
    selection = plain(temperature=1e6)(pool, store(values), keep=90, seed=0)
    assert np.bincount(concepts[selection.rows]).tolist() == [30, 30, 30]


def test_no_cluster_gives_more_than_it_has_or_less_than_the_floor(pool, values, concepts, store):
    signals = store(values)
    frozen = np.bincount(concepts[plain(temperature=1e-4)(pool, signals, keep=150, seed=0).rows], minlength=3)
    assert frozen[2] == 100  # all; the rest falls to the others alike
    assert abs(frozen[0] - frozen[1]) <= 50
    floored = np.bincount(concepts[plain(temperature=1e-4, floor=0.5)(pool, signals, keep=90, seed=0).rows])
    assert floored.min() >= 15


@pytest.mark.parametrize("choice", ["hard", "easy"])
def test_inside_a_cluster_the_hard_are_kept(pool, values, concepts, store, choice):
    selection = plain(choice=choice)(pool, store(values), keep=90, seed=0)
    distance, cluster = selection.scores["distance"], selection.scores["cluster"]
    kept = np.zeros(N, bool)
    kept[selection.rows] = True
    for c in range(3):
        stay, go = distance[kept & (cluster == c)], distance[~kept & (cluster == c)]
        assert stay.min() >= go.max() if choice == "hard" else stay.max() <= go.min()


def test_duplicates_go_first(pool, values, concepts, store):
    """Ten copies that lie far out would be kept as hard ones."""
    rows = values["clip.embedding"]
    copied = np.flatnonzero(concepts == 2)[:10]
    rows[copied] = normal(np.eye(16)[[2]] + 1.2 * np.eye(16)[[9]])
    signals = store(values)
    before = plain()(pool, signals, keep=90, seed=0)
    after = plain(dedup=0.8)(pool, signals, keep=90, seed=0)
    assert len(np.intersect1d(before.rows, copied)) == 10
    assert len(np.intersect1d(after.rows, copied)) <= 1
    assert (after.scores["cluster"] < 0).sum() == 60
    gone = np.flatnonzero(after.scores["cluster"] < 0)
    assert all(after.reasons[row].startswith("duplicate of ") for row in gone)


def test_reasons_tell_the_quota(pool, values, concepts, store):
    selection = plain()(pool, store(values), keep=90, seed=0)
    cluster = selection.scores["cluster"]
    kept = np.bincount(cluster[selection.rows], minlength=3)
    for row in range(N):
        size = (cluster == cluster[row]).sum()
        assert f"in cluster {cluster[row]}, which keeps {kept[cluster[row]]} of {size}" in selection.reasons[row]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"selector\.temperature=0 must be above 0"),
        ({"floor": 2}, r"selector\.floor=2: a share of the equal part"),
        ({"dedup": 0}, r"selector\.dedup=0: the share kept by SemDeDup"),
        ({"choice": "best"}, r"selector\.choice='best'; choose from hard, easy, random"),
        ({"clusters": 0}, r"selector\.clusters=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        Density(**options)
