import numpy as np
import pytest

from tldr.selector.image_filter import ImageFilter


def normal(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def shown(values, target) -> np.ndarray:
    """(N,) does the target show the scene?"""
    cosine = normal(values["clip.embedding"]) @ normal(target.signals["clip.embedding"].read()).T
    return cosine.max(1) > 0.8


def fine(score: str | None = None) -> ImageFilter:
    """Some clusters for every scene."""
    return ImageFilter(rows_per_cluster=4, score=score)


def test_clusters_of_the_target_are_kept(pool, signals, target, shown):
    selection = fine()(pool, signals, keep=50, seed=0, target=target)
    assert shown[selection.rows].mean() > 0.75 > 0.35 > shown.mean()
    pictures = selection.scores["target_pictures"]
    assert (pictures[selection.rows] > 0).all()
    cluster = selection.scores["cluster"]
    _, first = np.unique(cluster, return_index=True)
    assert pictures[first].sum() == 60  # every picture of the target has its cluster
    row = selection.rows[0]
    passed = int((pictures > 0).sum())
    told = f"cluster {cluster[row]} is the nearest to {pictures[row]} of the target's pictures; draw 0."
    assert selection.reasons[row].startswith(told)
    assert selection.reasons[row].endswith(f"{passed} pass")


def test_who_passes_is_drawn_or_chosen_by_a_score(pool, signals, values, target):
    drawn = fine()(pool, signals, keep=20, seed=0, target=target)
    scored = fine(score="clip.alignment")(pool, signals, keep=20, seed=0, target=target)
    passed = drawn.scores["target_pictures"] > 0
    cosine = np.where(passed, values["clip.alignment"], -2)
    assert set(scored.rows) == set(np.argsort(-cosine)[:20])
    assert len(np.intersect1d(scored.rows, drawn.rows)) < 15
    assert fine(score="clip.alignment").needs == ("clip.embedding", "clip.alignment")


def test_too_few_are_filled_from_the_nearest_clusters(pool, signals, target):
    selection = fine()(pool, signals, keep=150, seed=0, target=target)
    pictures, cluster = selection.scores["target_pictures"], selection.scores["cluster"]
    passed = np.flatnonzero(pictures > 0)
    assert len(passed) < 150
    assert set(passed) < set(selection.rows)
    back = np.setdiff1d(selection.rows, passed)
    dropped = np.setdiff1d(np.arange(300), selection.rows)
    assert len(set(cluster[back]) & set(cluster[dropped])) <= 1  # whole clusters, but for the last
    reason = selection.reasons[back[0]]
    assert "is not the nearest to any target picture" in reason
    assert reason.endswith(f"; taken back, as only {len(passed)} pass and 150 are kept")


def test_short_captions_go_first(pool, signals, target, shown):
    captions = np.array(pool.captions.to_pylist(), object)
    captions[np.flatnonzero(shown)[::2]] = "disc"
    short = captions == "disc"
    selection = fine()(pool.with_column("caption", captions.tolist()), signals, keep=30, seed=0, target=target)
    assert not short[selection.rows].any()
    row = int(np.flatnonzero(short)[0])
    assert selection.reasons[row].endswith("; words: 1 (minimum 2); characters: 4 (minimum 6)")
    most = fine()(
        pool.with_column("caption", captions.tolist()), signals, keep=300 - short.sum(), seed=0, target=target
    )
    assert np.array_equal(most.rows, np.flatnonzero(~short))


def test_clusters_follow_the_pool(pool, signals, target, capsys):
    selection = ImageFilter(rows_per_cluster=60)(pool, signals, keep=100, seed=0, target=target)
    assert selection.scores["cluster"].max() == 4
    assert "selector.clusters=100000 is lowered to 5, one for 60 of 300 pairs" in capsys.readouterr().out


def test_a_target_is_asked_for_by_its_override(pool):
    with pytest.raises(ValueError, match=r"ImageFilter needs a target set; give its data: \+data@selector"):
        ImageFilter().check(pool)
    with pytest.raises(ValueError, match=r"selector\.target=flickr8k is only a name: ImageFilter .*\+data@selector"):
        ImageFilter(target="flickr8k").check(pool)


def test_the_target_is_asked_for_pictures_alone():
    assert ImageFilter(score="blip.alignment").target_needs == ("clip.embedding",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 0}, r"selector\.clusters=0 must be at least 1"),
        ({"language": "EN"}, r"selector\.language='EN': a code of ISO 639-1 in two small letters"),
        ({"language": False}, r"selector\.language=False: .* for Norwegian"),
        ({"words": 2.5}, r"selector\.words=2\.5 must be a whole number"),
        ({"words": -1}, r"selector\.words=-1 must be at least 0"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFilter(**options)
