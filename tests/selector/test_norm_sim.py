import numpy as np
import pytest

from tldr.selector.norm_sim import NormSim


def normal(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def similarity(values, target) -> np.ndarray:
    """(N, M) cosines of the pool's pictures and the target's."""
    return normal(values["clip.embedding"]) @ normal(target.signals["clip.embedding"].read()).T


def test_infinity_is_the_most_similar_target_picture(pool, signals, target, similarity):
    selection = NormSim()(pool, signals, keep=75, seed=0, target=target)
    most = similarity.max(1)
    assert selection.scores["norm_sim"] == pytest.approx(most, abs=1e-5)
    assert set(selection.rows) == set(np.argsort(-most)[:75])
    uid = target.pairs.uids[int(similarity[9].argmax())].as_py()
    assert selection.reasons[9] == f"similarity {most[9]:.3g} to the target's {uid}, cut at {np.sort(most)[-75]:.3g}"


@pytest.mark.parametrize("p", [2, "2", 2.0])
def test_two_is_the_norm_of_all_similarities(pool, signals, target, similarity, p):
    selection = NormSim(p=p)(pool, signals, keep=75, seed=0, target=target)
    norm = np.sqrt((similarity**2).sum(1))
    assert selection.scores["norm_sim"] * np.sqrt(similarity.shape[1]) == pytest.approx(norm, abs=1e-4)
    assert set(selection.rows) == set(np.argsort(-norm)[:75])


@pytest.mark.parametrize("p", ["inf", "2"])
def test_scenes_of_the_target_are_kept(pool, signals, target, similarity, p):
    """Ten scenes of forty are shown there; a quarter of the pool has them."""
    shown = similarity.max(1) > 0.8
    assert 50 < shown.sum() < 100
    kept = NormSim(p=p)(pool, signals, keep=50, seed=0, target=target).rows
    assert shown[kept].mean() > 0.9


def test_the_pool_is_its_own_target(pool, signals, values):
    rows = normal(values["clip.embedding"])
    one = NormSim(p=2, against="pool", rounds=1)(pool, signals, keep=75, seed=0)
    vas = np.einsum("ne,ef,nf->n", rows, rows.T @ rows / 300, rows)
    assert one.scores["norm_sim"] ** 2 == pytest.approx(vas, abs=1e-5)
    assert set(one.rows) == set(np.argsort(-vas)[:75])

    left = np.arange(300)  # in rounds: 75 of 225 go in each, judged by what is left
    for _ in range(3):
        vas = np.einsum("ne,ef,nf->n", rows[left], rows[left].T @ rows[left] / len(left), rows[left])
        left = np.sort(left[np.argsort(-vas)[: len(left) - 75]])
    selection = NormSim(p=2, against="pool", rounds=3)(pool, signals, keep=75, seed=0)
    assert np.array_equal(selection.rows, left)
    assert set(selection.rows) != set(one.rows)
    assert np.bincount(selection.scores["round"]).tolist() == [0, 75, 75, 150]  # half of the last 150 stay
    assert "in round 1 of 3" in selection.reasons[int(np.flatnonzero(selection.scores["round"] == 1)[0])]


def test_a_target_is_asked_for_by_its_override(pool):
    with pytest.raises(ValueError, match=r"NormSim needs a target set; give its data: \+data@selector\.target"):
        NormSim().check(pool)
    NormSim(p=2, against="pool").check(pool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 3}, r"selector\.p='3'; choose from inf, 2"),
        ({"against": "all"}, r"selector\.against='all'; choose from target, pool"),
        ({"against": "pool"}, r"selector\.against=pool needs selector\.p=2"),
        ({"rounds": 0}, r"selector\.rounds=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        NormSim(**options)
