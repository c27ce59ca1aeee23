import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tldr.cluster import PCA, KMeans
from tldr.signal import store
from tldr.signal.feature import FEATURES, Feature, cluster
from tldr.signal.store import Signals

SCENES, L, K, D = 40, 16, 32, 8


def write(folder: Path, codes: np.ndarray, codebook: np.ndarray | None) -> Signals:
    """Signals as a VQ-VLM leaves them, in parts of `store.PART_ROWS`."""
    signals, step = Signals(folder, len(codes)), store.PART_ROWS
    means = (codes[..., :3] if codebook is None else codebook[codes].mean(1)).astype(np.float16)
    for number in range(signals.parts):
        rows = slice(number * step, (number + 1) * step)
        signals.write_part(number, {"codes": codes[rows].astype(np.uint16), "embedding": means[rows]}, {})
    if codebook is not None:
        signals.write_constant("codebook", codebook.astype(np.float32))
    return signals


MEANING = np.random.default_rng(1).permutation(K) // 4  # four codes for each of eight meanings, their ids in disorder


def planted(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """(count, L) codes of renderings of 40 scenes and (count,) the scenes: a rendering has a scene's meanings, but for
    one place, in any of their codes."""
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 8, (SCENES, L))
    label = rng.integers(SCENES, size=count)
    meanings = scenes[label]
    meanings[np.arange(count), rng.integers(L, size=count)] = rng.integers(0, 8, count)
    by_meaning = np.argsort(MEANING, kind="stable").reshape(8, 4)
    return by_meaning[meanings, rng.integers(4, size=(count, L))], label


def book(width: int = D) -> np.ndarray:
    """(K, width) code vectors: codes of one meaning are alike."""
    rng = np.random.default_rng(2)
    return rng.standard_normal((8, width))[MEANING] + 0.1 * rng.standard_normal((K, width))


@pytest.fixture
def signals(tmp_path) -> Signals:
    return write(tmp_path / "signals", planted()[0], book())


def together(label: np.ndarray, cluster: np.ndarray) -> float:
    """The share of pairs of one scene that are in one cluster."""
    same = (label[:, None] == label[None]) & ~np.eye(len(label), dtype=bool)
    return float((cluster[:, None] == cluster[None])[same].mean())


@pytest.mark.parametrize("kind", FEATURES)
def test_every_feature_clusters(signals, kind):
    label, distance = cluster(kind, signals, clusters=SCENES, seed=0)
    assert (label.shape, label.dtype) == ((400,), np.int64)
    assert distance.shape == (400,)
    assert len(np.unique(label)) > SCENES // 2
    assert label.min() >= 0
    assert label.max() < SCENES
    assert np.isfinite(distance).all()
    assert (distance >= 0).all()
    again, _ = cluster(kind, signals, clusters=SCENES, seed=0)
    assert np.array_equal(again, label)
    other, _ = cluster(kind, signals, clusters=SCENES, seed=1)
    assert not np.array_equal(other, label)


@pytest.mark.parametrize("kind", FEATURES)
def test_how_the_signals_are_cut_does_not_matter(signals, tmp_path, monkeypatch, kind):
    label, distance = cluster(kind, signals, clusters=20, seed=0)
    monkeypatch.setattr(store, "PART_ROWS", 37)
    parts = write(tmp_path / "parts", planted()[0], book())
    assert parts.parts == 11
    same, near = cluster(kind, parts, clusters=20, seed=0)
    assert np.array_equal(same, label)
    assert near == pytest.approx(distance, abs=1e-3)


def test_renderings_of_a_scene_stay_together(signals):
    _, scene = planted()
    found = {kind: together(scene, cluster(kind, signals, clusters=20, seed=0)[0]) for kind in FEATURES}
    assert found["tokens"] > 0.9
    assert found["tokens"] == max(found.values())
    assert found["raw"] < 0.3  # what distances between nominal ids are worth


def test_wide_tokens_are_shortened(tmp_path, monkeypatch):
    """16 tokens of 768 are wider than PCA can learn from at once."""
    widest, fit = [], PCA.fit
    monkeypatch.setattr(PCA, "fit", lambda sample, dim: widest.append(sample.shape[1]) or fit(sample, dim))
    codes, scene = planted()
    signals = write(tmp_path, codes, book(768))
    assert together(scene, cluster("tokens", signals, clusters=20, seed=0)[0]) > 0.9
    assert max(widest) <= 4096


def features(signals: Signals, kind: str, **options) -> np.ndarray:
    return np.concatenate(list(Feature(kind, signals, np.arange(400), **options).chunks()))


def test_places_matter_to_tokens_alone(signals, tmp_path):
    codes, _ = planted()
    rng = np.random.default_rng(2)
    moved = write(tmp_path / "moved", rng.permuted(codes, axis=1), book())
    for kind in ("histogram", "mean"):
        assert features(moved, kind) == pytest.approx(features(signals, kind), abs=1e-4)
    fitted = Feature("tokens", signals, np.arange(400))
    assert np.abs(fitted(codes) - fitted(rng.permuted(codes, axis=1))).max() > 0.5


def test_mean_is_the_mean_code(signals):
    expected = book().astype(np.float32)[planted()[0]].mean(1)
    assert features(signals, "mean") == pytest.approx(expected, abs=1e-5)
    assert features(signals, "embedding") == pytest.approx(expected, abs=2e-3)


def test_mean_needs_no_more_memory_than_its_result(tmp_path):
    """All code vectors of 4,000 pairs at once would be 30 MB."""
    codes = np.random.default_rng(0).integers(0, 300, (4000, 64))
    book = np.random.default_rng(1).standard_normal((300, 30)).astype(np.float32)
    signals = write(tmp_path, codes, book)
    tracemalloc.start()
    found = np.concatenate(list(Feature("mean", signals, np.arange(4000)).chunks()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == pytest.approx(book[codes].mean(1), abs=1e-5)
    assert peak < 10e6


def test_distances_of_histograms_are_hellingers(signals):
    codes, _ = planted()
    found = features(signals, "histogram", dim=K)
    counts = np.stack([np.bincount(row, minlength=K) for row in codes]) / L
    for i, j in ((0, 1), (5, 77), (398, 12)):
        hellinger = np.sqrt(((np.sqrt(counts[i]) - np.sqrt(counts[j])) ** 2).sum())
        assert np.linalg.norm(found[i] - found[j]) == pytest.approx(hellinger, abs=1e-4)


def test_distances_of_tokens_are_those_of_the_code_vectors(signals):
    flat = book().astype(np.float32)[planted()[0]].reshape(400, -1)
    found = features(signals, "tokens", dim=L * D)
    for i, j in ((0, 1), (5, 77), (398, 12)):
        assert np.linalg.norm(found[i] - found[j]) == pytest.approx(np.linalg.norm(flat[i] - flat[j]), rel=1e-3)


def test_the_released_feature_is_white_and_of_unit_length(tmp_path):
    codes = np.random.default_rng(0).integers(0, K, (400, L))
    codes[:, 1:] //= 8  # one place varies far more than the others
    found = features(write(tmp_path, codes, book()), "raw")
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(400), abs=1e-4)
    spread = found.std(0)
    assert spread.max() / spread.min() < 1.5


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_dim_is_how_many_components_are_kept(signals, dim):
    for kind in ("tokens", "histogram"):
        found = features(signals, kind, dim=dim)
        assert found.dtype == np.float32
        assert found.shape == (400, min(dim, K if kind == "histogram" else L * D))


def test_a_part_of_the_pool_is_clustered_alike(signals):
    """Rows whose pictures failed are left out: the others are a pool of their own."""
    rows = np.arange(0, 400, 2)
    label, distance = cluster("tokens", signals.at(rows), clusters=20, seed=0)
    assert len(label) == len(distance) == 200
    assert together(planted()[1][rows], label) > 0.8


def test_k_means_learns_from_a_sample_of_a_large_pool(tmp_path, monkeypatch):
    codes, scene = planted(21_000)
    learned, fit = [], KMeans.fit

    def watched(sample, *given, **options):
        learned.append(len(sample))
        return fit(sample, *given, **options)

    monkeypatch.setattr(KMeans, "fit", watched)
    label, _ = cluster("tokens", write(tmp_path, codes, book()), clusters=20, seed=0)
    assert len(label) == 21_000
    assert len(learned) == 1
    assert learned[0] < 21_000
    assert together(scene[:500], label[:500]) > 0.9


def test_equal_pictures_are_no_error(tmp_path):
    signals = write(tmp_path, np.full((50, L), 3), book())
    for kind in FEATURES:
        label, distance = cluster(kind, signals, clusters=4, seed=0)
        assert len(label) == 50
        assert distance == pytest.approx(np.zeros(50), abs=1e-3)


def test_errors_name_the_option(signals, tmp_path):
    with pytest.raises(ValueError, match="feature='pixels'; choose from tokens, mean, histogram, raw, embedding"):
        Feature("pixels", signals, np.arange(10))
    bare = write(tmp_path / "bare", planted()[0], None)
    for kind in ("tokens", "mean", "histogram"):
        with pytest.raises(ValueError, match="has no codebook"):
            cluster(kind, bare, clusters=4, seed=0)
    assert len(cluster("raw", bare, clusters=4, seed=0)[0]) == 400
    assert len(cluster("embedding", bare, clusters=4, seed=0)[0]) == 400
