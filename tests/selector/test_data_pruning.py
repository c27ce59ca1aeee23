import numpy as np
import pytest

from tldr.selector.data_pruning import DataPruning

N = 300
LABELLED = ("el2n", "grand", "forgetting")


def normal(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def corners(values) -> np.ndarray:
    """(N,) the corner, of six, that a picture lies about."""
    rng = np.random.default_rng(3)
    truth = rng.integers(6, size=N)
    rows = normal(np.eye(6, 16)[truth] + 0.2 * rng.standard_normal((N, 16)))
    values["clip.embedding"] = rows.astype(np.float32)
    return truth


@pytest.mark.parametrize("choice", ["hard", "easy"])
def test_prototypes_are_the_centres_of_clusters(pool, values, corners, store, choice):
    selection = DataPruning(choice=choice, rows_per_cluster=50)(pool, store(values), keep=75, seed=0)
    rows, cluster, distance = values["clip.embedding"], *(selection.scores[name] for name in ("cluster", "distance"))
    assert len({(a, b) for a, b in zip(corners, cluster, strict=True)}) < 15  # the clusters are the corners
    centres = normal(np.stack([rows[cluster == c].mean(0) for c in range(6)]))
    assert distance == pytest.approx(1 - (rows @ centres.T).max(1), abs=0.02)
    dropped = np.setdiff1d(np.arange(N), selection.rows)
    if choice == "hard":
        assert distance[selection.rows].min() >= distance[dropped].max()
    else:
        assert distance[selection.rows].max() <= distance[dropped].min()


def test_supervised_prototypes_are_the_means_of_labels(pool, values, corners, store):
    selector = DataPruning(score="supervised", labels="label", class_floor=0)
    selection = selector(pool, store(values), keep=75, seed=0)
    rows, labels = values["clip.embedding"], pool.column("label")
    expected = np.empty(N)
    for name in np.unique(labels):
        mean = normal(rows[labels == name].mean(0, keepdims=True))[0]
        expected[labels == name] = 1 - rows[labels == name] @ mean
    assert selection.scores["distance"] == pytest.approx(expected, abs=1e-5)
    assert set(selection.rows) == set(np.argsort(-selection.scores["distance"], kind="stable")[:75])
    assert all(f"from the mean of {name}" in told for name, told in zip(labels, selection.reasons, strict=True))


@pytest.mark.parametrize("score", LABELLED)
@pytest.mark.parametrize("choice", ["hard", "easy"])
def test_scores_of_a_classifier(pool, values, signals, score, choice):
    selector = DataPruning(score=score, choice=choice, labels="label", class_floor=0)
    selection = selector(pool, signals, keep=75, seed=0)
    value = values[f"classifier.{score}"]
    assert np.array_equal(selection.scores[score], value)
    sign = 1 if choice == "hard" else -1
    assert set(selection.rows) == set(np.argsort(-sign * value)[:75])
    cut = value[selection.rows].min() if choice == "hard" else value[selection.rows].max()
    ends = f"the {choice} are kept, {'from' if choice == 'hard' else 'up to'} {cut:.3g}"
    assert all(reason.endswith(ends) for reason in selection.reasons)


@pytest.fixture
def unfair(pool, values) -> np.ndarray:
    """(N,) the label; all stars are easy, all boxes hard."""
    labels = pool.column("label")
    values["classifier.el2n"] += np.select([labels == "star", labels == "box"], [-5, 5]).astype(np.float32)
    return labels


def test_every_class_keeps_half_of_an_equal_share(pool, values, unfair, store):
    signals = store(values)
    names = ("disc", "star", "box")
    bare = DataPruning(score="el2n", labels="label", class_floor=0)(pool, signals, keep=90, seed=0).rows
    assert [(unfair[bare] == name).sum() for name in names] == [0, 0, 90]
    selection = DataPruning(score="el2n", labels="label")(pool, signals, keep=90, seed=0)
    kept = np.zeros(N, bool)
    kept[selection.rows] = True
    assert [(unfair[kept] == name).sum() for name in names] == [15, 15, 60]
    for name in names:  # and of each the hardest
        score = values["classifier.el2n"][unfair == name]
        assert score[kept[unfair == name]].min() >= score[~kept[unfair == name]].max()
    stars = selection.rows[unfair[selection.rows] == "star"]
    assert all(selection.reasons[row].endswith("within the floor of star") for row in stars)


def test_a_floor_of_one_shares_equally(pool, values, unfair, store):
    kept = DataPruning(score="el2n", labels="label", class_floor=1)(pool, store(values), keep=90, seed=0).rows
    assert np.unique(unfair[kept], return_counts=True)[1].tolist() == [30, 30, 30]


def test_a_small_class_gives_all_it_has(pool, values, store):
    pool = pool.with_column("label", ["rare"] * 4 + ["common"] * (N - 4))
    values["classifier.el2n"][:4] = -1
    kept = DataPruning(score="el2n", labels="label")(pool, store(values), keep=90, seed=0).rows
    assert kept[:4].tolist() == [0, 1, 2, 3]


def test_prototypes_have_the_floor_where_labels_are_named(pool, signals):
    kept = DataPruning(labels="label", class_floor=1)(pool, signals, keep=90, seed=0).rows
    assert np.unique(pool.column("label")[kept], return_counts=True)[1].tolist() == [30, 30, 30]


def test_needs_follow_the_score():
    assert DataPruning().needs == DataPruning(score="supervised", labels="label").needs == ("clip.embedding",)
    assert DataPruning(embedding="embedding").needs == ("embedding",)
    for score in LABELLED:
        assert DataPruning(score=score, labels="label").needs == (f"classifier.{score}",)


@pytest.mark.parametrize("score", [*LABELLED, "supervised"])
def test_labels_are_asked_for(pool, score):
    with pytest.raises(ValueError, match=rf"selector\.score={score} needs labels; .* selector\.labels=label"):
        DataPruning(score=score).check(pool)
    with pytest.raises(ValueError, match=r"selector\.labels=kind: the pool has no such column; it has uid, image"):
        DataPruning(score=score, labels="kind").check(pool)
    DataPruning(score=score, labels="label").check(pool)
    DataPruning().check(pool)


def test_labels_with_gaps_are_refused(pool):
    gaps = pool.with_column("label", [None, *["star"] * (N - 1)])
    with pytest.raises(ValueError, match=rf"1 pairs have no label, such as {pool.uids[0]}"):
        DataPruning(score="el2n", labels="label").check(gaps)


def test_strange_scores_are_refused_by_uid(pool, values, store):
    values["classifier.el2n"][[7, 250]] = np.nan
    with pytest.raises(ValueError, match=rf"el2n is NaN or infinite for 2 pairs, such as {pool.uids[7]}"):
        DataPruning(score="el2n", labels="label")(pool, store(values), keep=75, seed=0)


def test_what_was_never_shown_was_not_forgotten(pool, values, store):
    values["classifier.forgetting"][[7, 250]] = np.nan
    with pytest.raises(
        ValueError, match=rf"classifier\.training\.max_steps .*never showed 2 pairs, such as {pool.uids[7]}"
    ):
        DataPruning(score="forgetting", labels="label")(pool, store(values), keep=75, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "loss"}, r"selector\.score='loss'; choose from prototypes, el2n, grand, forgetting, supervised"),
        ({"choice": "both"}, r"selector\.choice='both'; choose from hard, easy"),
        ({"class_floor": 1.5}, r"selector\.class_floor=1\.5: a share of the equal part"),
        ({"clusters": 0}, r"selector\.clusters=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        DataPruning(**options)
