import numpy as np
import pytest

from tldr.cluster import proportional, ranks
from tldr.selector.tldr import CHOICES, TLDR


def paper(choice: str = "uniform", **options) -> TLDR:
    """As in the paper: every cluster keeps its share."""
    return TLDR(**({"clusters": 10, "rows_per_cluster": 5, "choice": choice, "redundancy": None} | options))


# ------------------------------------------------------------------------------------------------ quotas and ranks


@pytest.mark.parametrize("seed", range(20))
def test_quotas_are_shares_and_sum_exactly(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 60, rng.integers(1, 40))
    sizes[0] += 1
    for keep in rng.integers(1, sizes.sum() + 1, 10):
        quota = proportional(sizes, int(keep))
        assert quota.sum() == keep
        assert (np.abs(quota - sizes * keep / sizes.sum()) < 1).all()
        assert ((quota >= 0) & (quota <= sizes)).all()
    assert np.array_equal(proportional(sizes, int(sizes.sum())), sizes)


def test_the_largest_remainders_get_the_rest():
    assert proportional(np.array([10, 10, 10, 6]), 5).tolist() == [2, 1, 1, 1]  # 1.39 thrice and 0.83
    assert proportional(np.array([3, 3, 3]), 1).tolist() == [1, 0, 0]


def test_ranks_are_places_inside_the_cluster():
    label, merit = np.array([2, 0, 2, 0, 2, 5]), np.array([1.0, 3, 9, 4, 1, 0])
    assert ranks(label, merit).tolist() == [1, 1, 0, 0, 2, 0]


# ------------------------------------------------------------------------------------------------ shares of clusters


@pytest.mark.parametrize("choice", CHOICES)
def test_every_cluster_keeps_its_share(pool, signals, choice):
    selection = paper(choice)(pool, signals, keep=75, seed=0)
    cluster = selection.scores["cluster"]
    sizes, kept = np.bincount(cluster), np.bincount(cluster[selection.rows], minlength=cluster.max() + 1)
    assert len(sizes) == 10
    assert np.array_equal(kept, proportional(sizes, 75))


@pytest.mark.parametrize(("choice", "merit"), [("alignment", "alignment"), ("nearest", "distance")])
def test_the_best_of_a_cluster_are_kept(pool, signals, values, choice, merit):
    selection = paper(choice)(pool, signals, keep=75, seed=0)
    cluster, score = selection.scores["cluster"], selection.scores[merit] * (1 if choice == "alignment" else -1)
    if choice == "alignment":
        assert np.array_equal(selection.scores["alignment"], values["alignment"])
    kept = np.zeros(300, bool)
    kept[selection.rows] = True
    for c in range(10):
        inside = cluster == c
        assert score[inside & kept].min() >= score[inside & ~kept].max()


def test_uniform_is_a_draw_of_its_own_seed(pool, signals, values, store):
    counts = np.zeros(300)
    for seed in range(60):
        counts[paper(clusters=1)(pool, signals, keep=75, seed=seed).rows] += 1
    assert counts.mean() == 15
    assert counts.std() < 6  # 3.4 for a fair draw; 26 if the same ones are kept each time
    assert np.abs(np.corrcoef(counts, values["alignment"])[0, 1]) < 0.2
    del values["alignment"]  # it does not even look
    assert len(paper()(pool, store(values), keep=75, seed=0).rows) == 75


def test_alignment_removes_the_mismatched(pool, signals):
    wrong = pool.column("truth_mismatched")
    share = {
        choice: wrong[paper(choice)(pool, signals, keep=75, seed=0).rows].mean() for choice in ("uniform", "alignment")
    }
    assert share["uniform"] > 0.25
    assert share["alignment"] < 0.05


# ------------------------------------------------------------------------------------------------ repetition at a price


def test_the_default_keeps_the_pairs_worth_most(pool, signals, values):
    selection = TLDR()(pool, signals, keep=75, seed=0)
    cluster, worth, alignment = (selection.scores[name] for name in ("cluster", "worth", "alignment"))
    assert np.array_equal(alignment, values["alignment"])
    kept = np.zeros(300, bool)
    kept[selection.rows] = True
    assert worth[kept].min() >= worth[~kept].max()
    fee = 0.35 * alignment.std()  # 75 clusters, 75 pairs: a fair share is one
    for c in range(75):
        best = -np.sort(-alignment[cluster == c])
        assert -np.sort(-worth[cluster == c]) == pytest.approx(best - fee * np.arange(len(best)), abs=1e-4)


def test_repetition_costs_what_it_is_told_to(pool, signals, values):
    """For nothing, the best aligned of the pool are kept; at any price, one of every cluster."""
    free = TLDR(redundancy=0.0)(pool, signals, keep=75, seed=0)
    assert set(free.rows) == set(np.argsort(-values["alignment"])[:75])
    dear = TLDR(redundancy=1e6, clusters=40)(pool, signals, keep=40, seed=0)
    assert len(set(dear.scores["cluster"][dear.rows])) == 40
    some, more = (TLDR(redundancy=price)(pool, signals, keep=75, seed=0) for price in (0.35, 2.0))
    spread = [len(set(one.scores["cluster"][one.rows])) for one in (free, some, more)]
    assert spread[0] < spread[1] < spread[2]


def test_a_fair_share_is_cheaper_where_more_is_kept(pool, signals):
    """Keeping three of four is no reason to drop the second of every cluster."""
    few, many = (TLDR(clusters=30)(pool, signals, keep=keep, seed=0) for keep in (30, 240))
    fees = []
    for selection in (few, many):
        cluster, paid = selection.scores["cluster"], selection.scores["alignment"] - selection.scores["worth"]
        fees.append(np.sort(paid[cluster == np.bincount(cluster).argmax()])[1])
    assert fees[0] == pytest.approx(8 * fees[1], rel=1e-3)


# ------------------------------------------------------------------------------------------------ options


def test_a_small_pool_has_fewer_clusters(pool, signals):
    for clusters, rows_per_cluster, most in ((3000, 32, 9), (3000, 301, 1), (4, 5, 4)):
        selector = TLDR(clusters=clusters, rows_per_cluster=rows_per_cluster)
        cluster = selector(pool, signals, keep=75, seed=0).scores["cluster"]
        assert len(np.unique(cluster)) == most


@pytest.mark.parametrize("feature", ["tokens", "mean", "histogram", "raw", "embedding"])
def test_every_feature_serves(pool, signals, values, store, feature):
    selector = TLDR(feature=feature)
    assert selector.needs == ("embedding" if feature == "embedding" else "codes", "alignment")
    assert len(selector(pool, signals, keep=75, seed=0).rows) == 75


def test_pictures_alike_share_a_cluster(pool, signals, values):
    """The planted scenes: two pairs in one cluster differ in fewer codes."""
    cluster = paper(clusters=40)(pool, signals, keep=75, seed=0).scores["cluster"]
    different = (values["codes"][:, None] != values["codes"][None]).mean(2)
    inside = (cluster[:, None] == cluster[None]) & ~np.eye(300, dtype=bool)
    assert different[inside].mean() < 0.6 * different[~inside].mean()


def test_reasons_say_what_decided(pool, signals):
    selection = TLDR()(pool, signals, keep=75, seed=0)
    row = int(selection.rows[0])
    alignment, worth, cluster = (selection.scores[name][row] for name in ("alignment", "worth", "cluster"))
    assert selection.reasons[row].startswith(f"alignment {alignment:.3g}, place ")
    assert f"in cluster {cluster}; worth {worth:.3g}" in selection.reasons[row]
    assert "the cluster keeps" in paper()(pool, signals, keep=75, seed=0).reasons[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "best"}, r"selector\.choice='best'; choose from alignment, uniform, nearest"),
        ({"feature": "pixels"}, r"selector\.feature='pixels'; choose from tokens, mean, histogram, raw, embedding"),
        ({"clusters": 0}, r"selector\.clusters and selector\.rows_per_cluster must be at least 1"),
        ({"rows_per_cluster": 0}, r"selector\.clusters and selector\.rows_per_cluster must be at least 1"),
        ({"choice": "uniform"}, r"set selector\.redundancy=null with selector\.choice=uniform"),
        ({"redundancy": -1.0}, r"selector\.redundancy=-1\.0 is a price in alignment, at least 0"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        TLDR(**options)


def test_in_length_bins_captions_compete_with_those_of_like_length(pool, store, values):
    """Where alignment is the caption's length, the longest win; in bins, every length keeps its share."""
    long = np.arange(300) % 3 == 0
    captions = [f"{caption} and much more to be said" if is_long else caption
                for caption, is_long in zip(pool.captions.to_pylist(), long, strict=True)]  # fmt: skip
    pool = pool.with_column("caption", captions)
    values["alignment"] = np.where(long, 20, 0).astype(np.float32) + np.arange(300, dtype=np.float32) / 300
    plain = TLDR(redundancy=0)(pool, store(values), keep=75, seed=0)
    binned = TLDR(redundancy=0, length_bins=3)(pool, store(values), keep=75, seed=0)
    assert long[plain.rows].all()
    assert long[binned.rows].sum() == 25
    short = np.flatnonzero(~long)
    assert set(short[-10:]) <= set(binned.rows)  # the best of the short ones
    assert binned.reasons[0].endswith("for captions of this length")


@pytest.mark.parametrize("wrong", [{"length_bins": 0}, {"length_bins": 5, "redundancy": None}])
def test_length_bins_go_with_redundancy(wrong):
    with pytest.raises(ValueError, match=r"selector\.length_bins="):
        TLDR(**wrong)
