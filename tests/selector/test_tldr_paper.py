import numpy as np
import pytest

from tldr.cluster import proportional, ranks
from tldr.selector.tldr_paper import CHOICES, TLDRPaper


def paper(choice: str = "uniform", **options) -> TLDRPaper:
    """With clusters enough for a small pool."""
    return TLDRPaper(**({"clusters": 10, "rows_per_cluster": 5, "choice": choice} | options))


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


# ------------------------------------------------------------------------------------------------ options


def test_a_small_pool_has_fewer_clusters(pool, signals):
    for clusters, rows_per_cluster, most in ((3000, 32, 9), (3000, 301, 1), (4, 5, 4)):
        selector = TLDRPaper(clusters=clusters, rows_per_cluster=rows_per_cluster)
        cluster = selector(pool, signals, keep=75, seed=0).scores["cluster"]
        assert len(np.unique(cluster)) == most


@pytest.mark.parametrize("feature", ["tokens", "mean", "histogram", "raw", "embedding"])
def test_every_feature_serves(pool, signals, feature):
    selector = paper(feature=feature)
    assert selector.needs == ("embedding" if feature == "embedding" else "codes",)
    assert len(selector(pool, signals, keep=75, seed=0).rows) == 75


def test_pictures_alike_share_a_cluster(pool, signals, values):
    """The planted scenes: two pairs in one cluster differ in fewer codes."""
    cluster = paper(clusters=40)(pool, signals, keep=75, seed=0).scores["cluster"]
    different = (values["codes"][:, None] != values["codes"][None]).mean(2)
    inside = (cluster[:, None] == cluster[None]) & ~np.eye(300, dtype=bool)
    assert different[inside].mean() < 0.6 * different[~inside].mean()


def test_reasons_say_what_decided(pool, signals):
    selection = paper("alignment")(pool, signals, keep=75, seed=0)
    row = int(selection.rows[0])
    assert selection.reasons[row].startswith(f"alignment {selection.scores['alignment'][row]:.3g}, place ")
    assert f"in cluster {selection.scores['cluster'][row]}, which keeps " in selection.reasons[row]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "best"}, r"selector\.choice='best'; choose from alignment, uniform, nearest"),
        ({"feature": "pixels"}, r"selector\.feature='pixels'; choose from tokens, mean, histogram, raw, embedding"),
        ({"clusters": 0}, r"selector\.clusters=0 must be at least 1"),
        ({"rows_per_cluster": 0}, r"selector\.rows_per_cluster=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        TLDRPaper(**options)
