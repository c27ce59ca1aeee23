import xml.etree.ElementTree as ET

import numpy as np

from tldr.report.figure import ROLES, cluster_share_figure, cluster_size_figure, score_figure, svg

VALUES = np.random.default_rng(0).normal(size=5000)
KEPT = VALUES > 1


def counts(figure) -> list[np.ndarray]:
    return [patch.get_data().values for patch in figure.axes[0].patches]


def test_every_pair_is_in_some_bin_outliers_too():
    values = np.append(VALUES, [1e9, -1e9])
    pool, kept = counts(score_figure(values, np.append(KEPT, [True, False]), label="score"))
    assert pool.sum() == len(values)
    assert kept.sum() == KEPT.sum() + 1
    assert (kept <= pool).all()
    assert np.count_nonzero(pool) > 20  # the outliers have not made all the others one bar


def test_whole_numbers_are_not_split_between_bins():
    words = np.repeat(np.arange(1, 13), 5)
    pool, _ = counts(score_figure(words, words > 6, label="words"))
    assert pool.tolist() == [5] * 12


def test_equal_values_make_one_bar():
    pool, kept = counts(score_figure(np.full(7, 2.5), np.arange(7) < 3, label="score"))
    assert (pool.tolist(), kept.tolist()) == ([7], [3])


def test_clusters_from_the_largest():
    cluster = np.repeat([3, 1, 7], [2, 6, 4])
    kept = np.isin(np.arange(12), [0, 2, 3, 4])
    assert [c.tolist() for c in counts(cluster_size_figure(cluster, kept))] == [[6, 4, 2], [3, 0, 1]]
    shares = counts(cluster_share_figure(cluster, kept))[0]
    assert (shares.sum(), shares[0], shares[12]) == (3, 1, 2)  # none of one, half of two


def test_svg_follows_the_page_and_is_small_and_the_same_again():
    texts = [svg(score_figure(VALUES, KEPT, label="a < b"), alt="a < b & c") for _ in range(2)]
    assert texts[0] == texts[1]
    assert ET.fromstring(texts[0]).attrib["aria-label"] == "a < b & c"
    assert not [colour for colour in ROLES if colour in texts[0]]
    assert "var(--kept)" in texts[0]
    assert len(texts[0]) < 30_000


def test_thousands_of_clusters_stay_small():
    cluster = np.repeat(np.arange(3000), 10)
    assert len(svg(cluster_size_figure(cluster, cluster % 2 == 0), alt="")) < 60_000
