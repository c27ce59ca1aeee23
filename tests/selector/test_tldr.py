import numpy as np
import pytest

from tldr.selector.tldr import TLDR


def test_without_novelty_the_best_aligned_are_kept_and_nothing_else_is_asked(pool, signals, values):
    selector = TLDR(novelty=0)
    assert selector.needs == ("alignment",)
    selection = selector(pool, signals, keep=75, seed=0)
    assert set(selection.rows) == set(np.argsort(-values["alignment"])[:75])
    assert np.array_equal(selection.scores["alignment"], values["alignment"])
    lowest = np.sort(values["alignment"])[-75]
    assert selection.reasons[0] == f"alignment {values['alignment'][0]:.3g}, cut at {lowest:.3g}"


@pytest.mark.parametrize(("novelty", "reach"), [(1, 0.4), (0.5, 1)])
def test_the_pairs_worth_most_are_kept(pool, signals, novelty, reach):
    selection = TLDR(novelty=novelty, reach=reach)(pool, signals, keep=75, seed=0)
    alignment, distance, worth = (selection.scores[name] for name in ("alignment", "distance", "worth"))
    right, far = alignment > 0, reach * np.percentile(distance, 99)
    new = np.minimum(distance / far, 1)
    assert 0 < (new < 1).mean() < 1
    assert worth[right] == pytest.approx((alignment * new**novelty)[right], abs=1e-5)
    assert np.array_equal(worth[~right], alignment[~right])  # neither raised nor lowered
    kept = np.zeros(300, bool)
    kept[selection.rows] = True
    assert worth[kept].min() >= worth[~kept].max()


def test_distances_are_those_to_the_nearest_better_pair(pool, signals, values):
    """Against a count by brute force: the feature is the embedding, which needs no fitting."""
    selection = TLDR(feature="embedding")(pool, signals, keep=75, seed=0)
    rows = values["embedding"].astype(np.float16).astype(np.float32)  # as it is kept
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    apart = np.sqrt(np.maximum(2 - 2 * rows @ rows.T, 0))
    for row in np.argsort(-values["alignment"])[1:]:
        better = values["alignment"] > values["alignment"][row]
        assert selection.scores["distance"][row] == pytest.approx(apart[row, better].min(), abs=5e-3)


def test_repetitions_go_first(pool, store, values):
    """Every picture four times: the dearer novelty, the more of them are left; of each the best aligned."""
    picture = np.arange(300) // 4
    values["codes"] = values["codes"][picture * 4]
    left = []
    for novelty in (0, 1, 8):
        rows = TLDR(novelty=novelty)(pool, store(values), keep=60, seed=0).rows
        left.append(len(np.unique(picture[rows])))
    assert left[0] < left[1] <= left[2] == 60
    for row in rows:
        assert values["alignment"][row] == values["alignment"][picture == picture[row]].max()


def test_a_wrong_caption_gains_nothing_by_a_picture_far_from_all_others(pool, store, values):
    """Here the only picture that is not like the others has the best of the captions that do not fit."""
    alignment, codes = np.sort(values["alignment"])[::-1].copy(), np.zeros_like(values["codes"])
    right = int((alignment > 0).sum())
    codes[:] = values["codes"][:1]
    codes[:, 0] = np.arange(300) % 3  # all much alike
    codes[right] = values["codes"][0].max() - values["codes"][0]
    values.update(alignment=alignment, codes=codes)
    for novelty in (0.5, 8):
        kept = TLDR(novelty=novelty)(pool, store(values), keep=right + 1, seed=0).rows
        assert sorted(kept) == list(range(right + 1))
        assert right not in TLDR(novelty=novelty)(pool, store(values), keep=right, seed=0).rows


def test_repetition_counts_as_much_where_it_is_usual(pool, store, values):
    """A novelty in standard deviations of the pool fails there. 290 pictures of one scene fit best."""
    values["codes"][:290] = values["codes"][0]
    values["codes"][290:] = np.random.default_rng(3).integers(0, 24, (10, 6))
    values["alignment"] = np.linspace(10, 9, 300).astype(np.float32)
    assert TLDR()(pool, store(values), keep=11, seed=0).rows.tolist() == [0, *range(290, 300)]


def test_wrong_captions_go(pool, signals):
    wrong = pool.column("truth_mismatched")
    assert wrong.mean() > 0.25
    assert wrong[TLDR()(pool, signals, keep=75, seed=0).rows].mean() < 0.05


def test_a_smaller_selection_is_part_of_a_larger_one(pool, signals):
    few, many = (set(TLDR()(pool, signals, keep=keep, seed=0).rows) for keep in (30, 150))
    assert few < many


def test_equal_pictures_and_equal_fits_are_no_trouble(pool, store, values):
    values["codes"] = np.zeros_like(values["codes"])
    values["alignment"] = np.ones(300, np.float32)
    assert TLDR()(pool, store(values), keep=75, seed=0).rows.tolist() == list(range(75))


def test_large_pools_are_compared_inside_clusters(pool, signals, capsys):
    selection = TLDR(rows_per_cluster=60)(pool, signals, keep=75, seed=0)
    assert len(np.unique(selection.scores["cluster"])) == 5
    assert sum("the best of its cluster" in reason for reason in selection.reasons) == 5
    assert "selector.clusters=50000 is lowered to 5" in capsys.readouterr().out


@pytest.mark.parametrize("feature", ["tokens", "mean", "histogram", "raw", "embedding"])
def test_every_feature_serves(pool, signals, feature):
    selector = TLDR(feature=feature)
    assert selector.needs == ("embedding" if feature == "embedding" else "codes", "alignment")
    assert len(selector(pool, signals, keep=75, seed=0).rows) == 75


def test_reasons_say_what_decided(pool, signals):
    selection = TLDR()(pool, signals, keep=75, seed=0)
    first, row = int(np.argmax(selection.scores["alignment"])), int(np.argmin(selection.scores["alignment"]))
    alignment, distance, worth = (selection.scores[name][row] for name in ("alignment", "distance", "worth"))
    reason = selection.reasons[row]
    assert reason.startswith(f"alignment {alignment:.3g}, at {distance:.3g} from ")
    assert f", which fits no worse; worth {worth:.3g}, cut at " in reason
    assert any(f" from {uid}," in reason for uid in pool.uids.to_pylist())
    assert "the best of its cluster" in selection.reasons[first]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"novelty": -1.0}, r"selector\.novelty=-1\.0 must be a finite power, from 0"),
        ({"novelty": np.inf}, r"selector\.novelty=inf must be a finite power, from 0"),
        ({"reach": np.nan}, r"selector\.reach=nan must be a share of the largest distance, from 0\.001 to 1"),
        ({"reach": 0}, r"selector\.reach=0 must be a share of the largest distance, from 0\.001 to 1"),
        ({"dim": 0}, r"selector\.dim=0 must be at least 1"),
        ({"dim": 2.5}, r"selector\.dim=2\.5 must be a whole number"),
        ({"reach": "far"}, r"selector\.reach='far' must be a share of the largest distance, from 0\.001 to 1"),
        ({"feature": "pixels"}, r"selector\.feature='pixels'; choose from tokens, mean, histogram, raw, embedding"),
        ({"clusters": 0}, r"selector\.clusters=0 must be at least 1"),
        ({"rows_per_cluster": 0}, r"selector\.rows_per_cluster=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        TLDR(**options)
