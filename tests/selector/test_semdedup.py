import numpy as np
import pytest

from tldr.selector.semdedup import SemDeDup
from tldr.signal.sphere import CHOICES, Sphere

N = 300


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def planted(values) -> np.ndarray:
    """240 pictures that are unlike, 40 exact copies of the first of them, 20 near copies of the next; (N,) 0, 1, 2."""
    rng = np.random.default_rng(7)
    rows = normal(rng.standard_normal((N, 16)))
    rows[240:280] = rows[:40]
    rows[280:] = normal(rows[40:60] + 0.03 * rng.standard_normal((20, 16)))
    order = rng.permutation(N)  # copies stand before and behind
    values["clip.embedding"] = rows[order].astype(np.float32)
    return np.repeat([0, 1, 2], [240, 40, 20])[order]


def groups(values) -> np.ndarray:
    """(N, N) which are copies of each other."""
    rows = values["clip.embedding"]
    return rows @ rows.T > 0.97


def test_planted_duplicates_go(pool, values, planted, store):
    """Of every group one stays, and everything that has no copy."""
    same = groups(values)
    selection = SemDeDup()(pool, store(values), keep=240, seed=0)
    kept = np.zeros(N, bool)
    kept[selection.rows] = True
    assert same.sum(1).max() == 2
    assert (same[:, kept].sum(1) == 1).all()


def test_exact_copies_go_first(pool, values, planted, store):
    rows = values["clip.embedding"]
    exact = (rows @ rows.T > 1 - 1e-5).sum(1) > 1
    assert exact.sum() == 80
    dropped = np.setdiff1d(np.arange(N), SemDeDup()(pool, store(values), keep=260, seed=0).rows)
    assert len(dropped) == 40
    assert exact[dropped].all()
    more = np.setdiff1d(np.arange(N), SemDeDup()(pool, store(values), keep=250, seed=0).rows)
    assert set(dropped) < set(more)  # a smaller subset of one pool is inside the larger


def test_hard_easy_and_random_keep_another_of_a_group(pool, values, planted, store):
    rows, same = values["clip.embedding"], groups(values)
    central = Sphere.fit(rows, 1, seed=0).similarity
    near = np.argwhere(np.triu(same, 1) & (rows @ rows.T < 1 - 1e-4))
    signals = store(values)
    kept = {c: set(SemDeDup(choice=c)(pool, signals, keep=240, seed=0).rows) for c in CHOICES}
    assert len(near) == 20
    for one, other in near:
        hard, easy = sorted((one, other), key=lambda row: central[row])
        assert hard in kept["hard"]
        assert hard not in kept["easy"]
        assert easy in kept["easy"]
        assert easy not in kept["hard"]
    assert kept["random"] not in (kept["hard"], kept["easy"])
    assert kept["random"] != set(SemDeDup(choice="random")(pool, signals, keep=240, seed=1).rows)


def test_reasons_name_the_twin_and_the_epsilon_reached(pool, values, planted, store):
    selection = SemDeDup()(pool, store(values), keep=240, seed=0)
    rows, uids = values["clip.embedding"], pool.uids.to_pylist()
    same = groups(values)
    dropped = np.setdiff1d(np.arange(N), selection.rows)
    cut = selection.scores["similarity"][dropped].min()
    assert 0.97 < cut < 1
    for row in dropped:
        twin = int(np.setdiff1d(np.flatnonzero(same[row]), row)[0])
        similarity = min(float(rows[row] @ rows[twin]), 1)
        assert selection.reasons[row] == (
            f"duplicate of {uids[twin]}, similarity {similarity:.4g}; cut at {cut:.4g}, epsilon {1 - cut:.3g}"
        )
    told = [selection.reasons[row] for row in selection.rows]
    assert sum(reason.startswith("the first of cluster 0; cut at") for reason in told) == 1
    assert sum(reason.startswith("most like ") for reason in told) == 239


def test_a_fixed_epsilon_draws_from_what_remains(pool, values, planted, store):
    selector, signals = SemDeDup(epsilon=0.03), store(values)
    one, other = (selector(pool, signals, keep=100, seed=seed) for seed in (0, 1))
    for selection in (one, other):
        assert (selection.scores["similarity"][selection.rows] <= 0.97).all()
    assert len(np.intersect1d(one.rows, other.rows)) < 60  # 42 for two draws of 100 out of 240
    counts = [
        sum(told in reason for reason in one.reasons) for told in ("epsilon 0.03: drawn, 100 of 240", "not drawn")
    ]
    assert counts == [100, 140]


def test_repeated_pictures_are_drawn_as_often_as_others(pool, store, values):
    """Who of a group goes first is drawn, too, but by another draw: else the first of many would hardly be kept."""
    rng = np.random.default_rng(2)
    group = np.concatenate([np.arange(150), np.repeat(np.arange(150, 180), 5)])  # 150 alone, 30 groups of five
    values["clip.embedding"] = rng.standard_normal((180, 16)).astype(np.float16)[group]
    kept = [SemDeDup(epsilon=0.01, choice="random")(pool, store(values), keep=90, seed=seed).rows for seed in range(12)]
    alone, repeated = (np.mean([np.isin(rows, part).sum() for rows in kept]) for part in (range(150), range(150, N)))
    assert alone / 150 == pytest.approx(0.5, abs=0.06)
    assert repeated / 30 == pytest.approx(0.5, abs=0.12)


def test_a_fixed_epsilon_takes_the_least_similar_back(pool, values, planted, store):
    selection = SemDeDup(epsilon=0.03)(pool, store(values), keep=255, seed=0)
    similarity = selection.scores["similarity"]
    back = selection.rows[similarity[selection.rows] > 0.97]
    dropped = np.setdiff1d(np.arange(N), selection.rows)
    assert len(back) == 15
    assert similarity[back].max() <= similarity[dropped].min()
    assert all("taken back, as only 240 are not duplicates and 255 are kept" in selection.reasons[row] for row in back)
    assert all(selection.reasons[row].startswith("duplicate of ") for row in dropped)


def test_clusters_follow_the_pool(pool, signals, capsys):
    selection = SemDeDup(rows_per_cluster=60)(pool, signals, keep=100, seed=0)
    assert selection.scores["cluster"].max() == 4
    assert "selector.clusters=50000 is lowered to 5, one for 60 of 300 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "best"}, r"selector\.choice='best'; choose from hard, easy, random"),
        ({"clusters": 0}, r"selector\.clusters=0 must be at least 1"),
        ({"clusters": True}, r"selector\.clusters=True must be a whole number"),
        ({"rows_per_cluster": 32.5}, r"selector\.rows_per_cluster=32\.5 must be a whole number"),
        ({"epsilon": -0.1}, r"selector\.epsilon=-0\.1: a cosine distance"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        SemDeDup(**options)


def test_strange_embeddings_are_refused_by_uid(pool, values, store):
    values["clip.embedding"][[7, 250], 3] = np.nan
    with pytest.raises(ValueError, match=rf"clip\.embedding is NaN or infinite for 2 pairs, such as {pool.uids[7]}"):
        SemDeDup()(pool, store(values), keep=75, seed=0)
