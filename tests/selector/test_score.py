import numpy as np
import pytest

from tldr.selector.score import Score

CLIP, ITM = Score(scorer="clip", title="CLIP score"), Score(scorer="blip", title="log-odds of a match")


def test_the_most_similar_are_kept(pool, signals, values):
    selection = CLIP(pool, signals, keep=75, seed=0)
    cosine = values["clip.alignment"]
    assert set(selection.rows) == set(np.argsort(-cosine)[:75])
    assert pool.column("truth_mismatched")[selection.rows].mean() < 0.05 < pool.column("truth_mismatched").mean()
    cut = np.sort(cosine)[-75]
    assert selection.reasons[3] == f"CLIP score {cosine[3]:.3g}, cut at {cut:.3g}"
    assert np.array_equal(selection.scores["clip.alignment"], cosine)


def test_ties_go_by_row(pool, values, store):
    values["clip.alignment"] = np.repeat([0.1, 0.2], 150).astype(np.float32)
    assert CLIP(pool, store(values), keep=100, seed=0).rows.tolist() == list(range(150, 250))


def test_another_scorer_is_asked_by_its_name(pool, values, store):
    values["siglip.alignment"] = -values["clip.alignment"]
    kept = Score(scorer="siglip")(pool, store(values), keep=75, seed=0).rows
    assert set(kept) == set(np.argsort(values["clip.alignment"])[:75])


def test_the_surest_matches_are_kept(pool, signals, values):
    selection = ITM(pool, signals, keep=75, seed=0)
    odds = values["blip.alignment"]
    assert set(selection.rows) == set(np.argsort(-odds)[:75])
    assert not pool.column("truth_mismatched")[selection.rows].any()
    assert selection.reasons[5] == f"log-odds of a match {odds[5]:.3g}, cut at {np.sort(odds)[-75]:.3g}"


def test_strange_scores_are_refused_by_uid(pool, values, store):
    values["blip.alignment"][[7, 250]] = np.nan
    with pytest.raises(ValueError, match=rf"blip\.alignment is NaN or infinite for 2 pairs, such as {pool.uids[7]}"):
        ITM(pool, store(values), keep=75, seed=0)
