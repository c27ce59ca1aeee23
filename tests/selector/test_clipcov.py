import numpy as np
import pytest

from tldr.selector import clipcov
from tldr.selector.clipcov import ClipCov, order
from tldr.signal.sphere import Sphere, unit

N = 300


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One class: pictures, captions (50, 8), and what they have in common with other classes (50,)."""
    rng = np.random.default_rng(3)
    image = unit(rng.standard_normal((50, 8)) + np.eye(8)[0])
    return image, unit(image + 0.5 * rng.standard_normal((50, 8))), 0.1 * rng.random(50, np.float32)


@pytest.mark.parametrize("dense", [0, 8192])
def test_worth_as_it_is_written(pairs, dense, monkeypatch):
    """Greedy over the sum of the docstring, each time from the beginning."""
    monkeypatch.setattr(clipcov, "DENSE", dense)
    image, text, foreign = pairs
    worth, place = order(image, text, foreign)
    cosine = np.maximum(image @ text.T, 0)
    both = (cosine + cosine.T) / 50
    label = np.maximum(text @ unit(text.mean(0, keepdims=True))[0], 0)
    tax = (both.sum(1) + label / 2) / 50
    picked: list[int] = []
    for number in range(50):
        left = np.setdiff1d(np.arange(50), picked)
        value = both[np.ix_(left, np.setdiff1d(np.arange(50), picked))].sum(1)
        value = value + (2 * (image * text).sum(1) + label / 2 - foreign)[left] - tax[picked].sum()
        pick = int(np.flatnonzero(place == number)[0])
        assert value[left == pick][0] == pytest.approx(value.max(), abs=1e-5)
        assert worth[pick] == pytest.approx(value.max(), abs=1e-4)
        picked.append(pick)


def test_worth_only_falls(pairs):
    worth, place = order(*pairs)
    assert (np.diff(worth[np.argsort(place)]) <= 0).all()


def test_other_classes_are_what_a_pair_should_not_be_like(pool, signals, values):
    image, text = (unit(values[f"clip.{name}"]) for name in ("embedding", "text_embedding"))
    sphere = Sphere.fit(unit(image + text), 5, seed=0)
    found = clipcov._foreign(image, text, sphere.members())
    for row in (0, 17, 299):
        others = [text[members].mean(0) for c, members in enumerate(sphere.members()) if c != sphere.label[row]]
        assert found[row] == pytest.approx(np.mean([image[row] @ centre for centre in others]), abs=1e-5)


def test_the_most_worth_of_all_classes_are_kept(pool, signals):
    selection = ClipCov(rows_per_cluster=50)(pool, signals, keep=75, seed=0)
    worth = selection.scores["worth"]
    dropped = np.setdiff1d(np.arange(N), selection.rows)
    assert len(np.unique(selection.scores["cluster"])) == 6
    assert worth[selection.rows].min() >= worth[dropped].max()


def test_the_mismatched_go(pool, signals):
    wrong = pool.column("truth_mismatched")
    kept = ClipCov(rows_per_cluster=50)(pool, signals, keep=75, seed=0).rows
    assert wrong.mean() > 0.3
    assert wrong[kept].mean() < 0.05


def test_cross_covariance_is_kept_better_than_by_the_best_fitting(pool, values, store):
    """Pairs of two kinds, the smaller fitting better: by fit alone one kind would be all that is kept."""
    rng = np.random.default_rng(3)
    kind = (np.arange(N) % 3 == 0).astype(int)
    image = unit(np.eye(2, 16)[kind] + 0.1 * rng.standard_normal((N, 16)))
    text = unit(image + np.where(kind, 0.02, 0.1)[:, None] * rng.standard_normal((N, 16)))
    values |= {"clip.embedding": image, "clip.text_embedding": text}
    whole = image.T @ text / N

    def lost(rows: np.ndarray) -> float:
        return float(np.linalg.norm(image[rows].T @ text[rows] / len(rows) - whole))

    kept = ClipCov(clusters=1)(pool, store(values), keep=60, seed=0).rows
    assert lost(kept) < 0.6 * lost(np.argsort(-(image * text).sum(1))[:60])


def test_reasons_tell_the_worth(pool, signals):
    selection = ClipCov()(pool, signals, keep=75, seed=0)
    worth, cluster = selection.scores["worth"], selection.scores["cluster"]
    for row in range(N):
        assert selection.reasons[row].startswith(f"worth {worth[row]:.4g} as pick ")
        assert f" of class {cluster[row]}, cut at {worth[selection.rows].min():.4g};" in selection.reasons[row]


def test_needs_follow_the_scorer():
    assert ClipCov().needs == ("clip.embedding", "clip.text_embedding")
    assert ClipCov(scorer="siglip").needs == ("siglip.embedding", "siglip.text_embedding")


def test_errors_name_the_option():
    with pytest.raises(ValueError, match=r"selector\.rows_per_cluster=0 must be at least 1"):
        ClipCov(rows_per_cluster=0)


def test_large_pools_have_more_classes_rather_than_large_ones(pool, signals, monkeypatch, capsys):
    monkeypatch.setattr(clipcov, "DENSE", 60)
    selection = ClipCov(clusters=4, rows_per_cluster=10)(pool, signals, keep=75, seed=0)
    assert len(np.unique(selection.scores["cluster"])) == 10
    assert "selector.clusters: 4 are raised to 10" in capsys.readouterr().out
