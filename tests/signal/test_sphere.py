import numpy as np
import pytest

from tldr.pairs import Pairs, derive_uid
from tldr.signal import sphere
from tldr.signal.sphere import Duplicates, Sphere, cluster_count, similarities, unit, unit_rows
from tldr.signal.store import Signals


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pairs(count: int, root) -> Pairs:
    images = [f"{i:04d}.png" for i in range(count)]
    uids = [derive_uid(image, "a star") for image in images]
    return Pairs.build({"uid": uids, "image": images, "caption": ["a star"] * count}, root=root)


def test_rows_are_of_length_one(rng):
    rows = unit(rng.standard_normal((50, 7)).astype(np.float16))
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    assert not unit(np.zeros((1, 3))).any()


def test_strange_values_are_named(rng, tmp_path):
    pool, store = pairs(30, tmp_path), Signals(tmp_path / "signals", 30)
    values = rng.standard_normal((30, 4)).astype(np.float16)
    values[[4, 20], [1, 3]] = np.nan, np.inf
    store.write_part(0, {"embedding": values}, {})
    with pytest.raises(ValueError, match=rf"embedding is NaN or infinite for 2 pairs, such as {pool.uids[4].as_py()}"):
        unit_rows(pool, store, "embedding")


def test_lowering_is_told(capsys):
    assert cluster_count(50, 1000, 10) == 50
    assert capsys.readouterr().out == ""
    assert cluster_count(50, 199, 10) == 19
    assert capsys.readouterr().out == "selector.clusters=50 is lowered to 19, one for 10 of 199 pairs\n"
    assert cluster_count(50, 3, 10) == 1


def test_clusters_are_spherical(rng):
    corners = np.eye(6, 8, dtype=np.float32)
    truth = rng.integers(6, size=400)
    rows = unit(corners[truth] + 0.05 * rng.standard_normal((400, 8), np.float32))
    found = Sphere.fit(rows, 6, seed=0)
    assert np.linalg.norm(found.centroids, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    cosine = rows @ found.centroids.T
    assert np.array_equal(found.label, cosine.argmax(1))
    assert found.similarity == pytest.approx(cosine.max(1), abs=1e-5)
    assert len({(a, b) for a, b in zip(truth, found.label, strict=True)}) == 6
    for number, members in enumerate(found.members()):
        assert np.array_equal(members, np.flatnonzero(found.label == number))


def test_a_part_is_learned_from_and_all_are_assigned(rng):
    rows = unit(rng.standard_normal((300, 5), np.float32))
    part = np.flatnonzero(rows[:, 0] > 0)
    found = Sphere.fit(rows, 4, seed=0, of=part)
    assert (found.centroids[:, 0] > 0).all()
    assert len(found.label) == 300


@pytest.mark.parametrize("dense", [0, 100])
def test_similarities_are_cosines_either_way(rng, monkeypatch, dense):
    monkeypatch.setattr(sphere, "DENSE", dense)
    rows = unit(rng.standard_normal((40, 5), np.float32))
    assert similarities(rows)(7) == pytest.approx(rows @ rows[7], abs=1e-6)


@pytest.mark.parametrize("choice", sphere.CHOICES)
@pytest.mark.parametrize("block", [7, 2048])
def test_duplicates_against_a_direct_computation(rng, monkeypatch, choice, block):
    """Blocks or not: the most similar of those that stand before."""
    monkeypatch.setattr(sphere, "_BLOCK", block)
    rows = unit(rng.standard_normal((120, 6), np.float32))
    found, clusters = Duplicates.find(rows, 3, choice=choice, seed=5), Sphere.fit(rows, 3, seed=5)
    assert np.array_equal(found.cluster, clusters.label)
    assert (found.twin < 0).sum() == 3
    assert (found.similarity[found.twin < 0] == -1).all()
    shuffled = np.random.default_rng(5).random(120)
    order = {"hard": clusters.similarity, "easy": -clusters.similarity, "random": shuffled}[choice]
    for row in range(120):
        before = np.flatnonzero((found.cluster == found.cluster[row]) & (order < order[row]))
        if len(before):
            cosine = rows[before] @ rows[row]
            assert found.similarity[row] == pytest.approx(cosine.max(), abs=1e-5)
            assert found.twin[row] == before[cosine.argmax()]
