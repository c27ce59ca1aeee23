import numpy as np
import pytest

from tldr.selector.itm_score import ItmScore


def test_the_surest_matches_are_kept(pool, signals, values):
    selection = ItmScore()(pool, signals, keep=75, seed=0)
    odds = values["blip.alignment"]
    assert set(selection.rows) == set(np.argsort(-odds)[:75])
    assert not pool.column("truth_mismatched")[selection.rows].any()
    assert selection.reasons[5] == f"log-odds of a match {odds[5]:.3g}, cut at {np.sort(odds)[-75]:.3g}"


def test_strange_scores_are_refused_by_uid(pool, values, store):
    values["blip.alignment"][[7, 250]] = np.nan
    with pytest.raises(ValueError, match=rf"blip\.alignment is NaN or infinite for 2 pairs, such as {pool.uids[7]}"):
        ItmScore()(pool, store(values), keep=75, seed=0)
