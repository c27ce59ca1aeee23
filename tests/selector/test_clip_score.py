import numpy as np

from tldr.selector.clip_score import ClipScore


def test_the_most_similar_are_kept(pool, signals, values):
    selection = ClipScore()(pool, signals, keep=75, seed=0)
    cosine = values["clip.alignment"]
    assert set(selection.rows) == set(np.argsort(-cosine)[:75])
    assert pool.column("truth_mismatched")[selection.rows].mean() < 0.05 < pool.column("truth_mismatched").mean()
    cut = np.sort(cosine)[-75]
    assert selection.reasons[3] == f"CLIP score {cosine[3]:.3g}, cut at {cut:.3g}"
    assert np.array_equal(selection.scores["clip.alignment"], cosine)


def test_ties_go_by_row(pool, values, store):
    values["clip.alignment"] = np.repeat([0.1, 0.2], 150).astype(np.float32)
    assert ClipScore()(pool, store(values), keep=100, seed=0).rows.tolist() == list(range(150, 250))


def test_another_scorer_is_asked_by_its_name(pool, values, store):
    values["siglip.alignment"] = -values["clip.alignment"]
    kept = ClipScore(scorer="siglip")(pool, store(values), keep=75, seed=0).rows
    assert set(kept) == set(np.argsort(values["clip.alignment"])[:75])
