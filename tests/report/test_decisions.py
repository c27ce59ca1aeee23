import numpy as np
import pyarrow as pa
import pytest

from tldr.report.decisions import Decisions
from tldr.selector.base import Selection


def shown(made, count=3, seed=0):
    return {gallery.title: gallery.rows.tolist() for gallery in made.galleries(count, seed=seed)}


def test_decisions_of_another_pool_are_refused(pool, decisions):
    with pytest.raises(ValueError, match="40 decisions are not of this pool of 39 pairs"):
        Decisions(pool.take(np.arange(1, 40)), decisions)
    with pytest.raises(ValueError, match="other uids"):
        Decisions(pool, decisions.take(pa.array(np.arange(40)[::-1])))


def test_galleries_are_the_ends_of_the_kept_and_of_the_dropped(pool, decisions):
    galleries = shown(Decisions(pool, decisions))
    assert galleries == {
        "Best kept": [39, 38, 37],
        "Borderline, kept": [32, 31, 30],
        "Borderline, dropped": [29, 28, 27],
        "Worst dropped": [2, 1, 0],
    }


def test_which_end_is_better_is_seen_from_what_was_kept(pool):
    distance = np.arange(40, dtype=np.float32)
    made = Decisions(pool, Selection(np.arange(10), [""] * 40, {"distance": distance}).decisions(pool))
    assert shown(made)["Best kept"] == [0, 1, 2]
    assert shown(made)["Worst dropped"] == [37, 38, 39]
    assert made.galleries(3, seed=0)[0].note == "lowest distance of the kept"


def test_alignment_comes_before_other_scores(pool):
    scores = {"distance": np.zeros(40, np.float32), "alignment": np.ones(40, np.float32), "draw": np.arange(40)}
    made = Decisions(pool, Selection(np.arange(10), [""] * 40, scores).decisions(pool))
    assert list(made.scores) == ["alignment", "distance"]  # a place in a draw is no score


def test_galleries_go_by_the_score_that_decided(pool):
    worth = np.random.default_rng(0).permutation(40).astype(np.float32)
    kept = np.sort(np.argsort(-worth)[:10])
    scores = {"alignment": worth + np.arange(40, dtype=np.float32), "worth": worth}
    galleries = Decisions(pool, Selection(kept, [""] * 40, scores).decisions(pool)).galleries(3, seed=0)
    assert galleries[2].note == "highest worth of the dropped"
    assert worth[galleries[2].rows].tolist() == [29, 28, 27]


def test_without_scores_a_draw(pool):
    made = Decisions(pool, Selection(np.arange(10), [""] * 40, {"draw": np.arange(40)}).decisions(pool))
    galleries = shown(made)
    assert list(galleries) == ["Kept", "Dropped"]
    assert set(galleries["Kept"]) <= set(range(10))
    assert set(galleries["Dropped"]) <= set(range(10, 40))
    assert galleries == shown(made) != shown(made, seed=1)


def test_nothing_dropped(pool):
    score = np.arange(40, dtype=np.float32)
    galleries = shown(Decisions(pool, Selection(np.arange(40), [""] * 40, {"alignment": score}).decisions(pool)))
    assert galleries == {"Best kept": [39, 38, 37], "Borderline, kept": [2, 1, 0]}


def test_one_pair_kept_is_shown_once(pool):
    score = np.arange(40, dtype=np.float32)
    galleries = shown(Decisions(pool, Selection(np.array([39]), [""] * 40, {"alignment": score}).decisions(pool)))
    assert galleries["Best kept"] == [39]
    assert "Borderline, kept" not in galleries


def test_examples_of_a_large_end_are_drawn_from_its_extreme(make_pool):
    pool = make_pool(1000, size=1)
    score = np.arange(1000, dtype=np.float32)
    made = Decisions(pool, Selection(np.arange(500, 1000), [""] * 1000, {"alignment": score}).decisions(pool))
    best = shown(made, count=4)["Best kept"]
    assert len(best) == 4
    assert min(best) >= 990  # the best fiftieth of 500
    assert best == sorted(best, reverse=True)


def test_clusters_show_both_sides(pool, decisions):
    made = Decisions(pool, decisions)
    clusters = made.divided_clusters(3, 2, seed=0)
    assert len(clusters) == 3
    for number, kept, dropped in clusters:
        assert len(kept.rows) == len(dropped.rows) == 2
        assert (np.concatenate([kept.rows, dropped.rows]) % 4 == number).all()
        assert (kept.rows >= 30).all()
        assert (dropped.rows < 30).all()


@pytest.mark.parametrize("scores", [{}, {"cluster": np.zeros(40, int)}])
def test_a_method_without_clusters_that_part_the_pool(pool, scores):
    made = Decisions(pool, Selection(np.arange(10), [""] * 40, scores).decisions(pool))
    assert made.cluster is None
    assert made.divided_clusters(3, 2, seed=0) == []


def test_words_are_counted_between_any_white_space(make_pool):
    pool = make_pool(4, caption=["one", " two\twords\n", "", "так  and  كلب 🐕"])
    made = Decisions(pool, Selection(np.array([0]), [""] * 4).decisions(pool))
    assert made.pool.words.tolist() == [1, 2, 0, 4]
