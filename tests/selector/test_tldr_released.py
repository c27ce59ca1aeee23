from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tldr.cluster import proportional
from tldr.selector.tldr_paper import TLDRPaper
from tldr.selector.tldr_released import TLDRReleased, on_stride
from tldr.signal.feature import cluster
from tldr.signal.sphere import cluster_count

CONF = Path(__file__).parents[2] / "conf" / "selector"


# ------------------------------------------------------------------------------------------------ the paper's


def test_the_papers_is_a_uniform_share_of_every_cluster(pool, signals, values, store):
    selector = instantiate(OmegaConf.load(CONF / "tldr_paper.yaml"))
    assert isinstance(selector, TLDRPaper)
    assert selector.needs == ("codes",)  # no filter by alignment
    assert selector.clusters == 3000
    selection = selector(pool, signals, keep=75, seed=0)
    cluster = selection.scores["cluster"]
    sizes, kept = np.bincount(cluster), np.bincount(cluster[selection.rows], minlength=cluster.max() + 1)
    assert np.array_equal(kept, proportional(sizes, 75))
    assert len(sizes) == 9  # of 300 pairs


# ------------------------------------------------------------------------------------------------ the released script's


def test_every_nth_of_a_cluster():
    label = np.array([0, 1, 0, 0, 1, 0, 0, 1])  # places 0 0 1 2 1 3 4 2
    assert np.flatnonzero(on_stride(label, 2)).tolist() == [0, 1, 3, 6, 7]
    assert on_stride(label, 1).all()
    assert np.flatnonzero(on_stride(np.zeros(9, int), 2.5)).tolist() == [0, 3, 5, 8]


@pytest.mark.parametrize(("keep", "stride"), [(30, 5.0), (75, 2.0), (150, 1.0)])
def test_the_stride_meets_compression(pool, signals, keep, stride):
    reasons = TLDRReleased()(pool, signals, keep=keep, seed=0).reasons
    assert all(f"the stride of {stride:g} in cluster " in reason for reason in reasons)


def test_it_is_the_stride_and_the_top_half(pool, signals, values):
    selection = TLDRReleased(stride=2)(pool, signals, keep=75, seed=0)
    itm = values["blip.alignment"]
    top = itm >= np.sort(itm)[150]
    found = np.flatnonzero(on_stride(selection.scores["cluster"], 2) & top)
    assert 55 <= len(found) <= 95  # 75 expected
    same = np.intersect1d(found, selection.rows)
    assert len(same) == min(len(found), 75)
    odd = np.setxor1d(found, selection.rows)
    assert len(odd) == abs(len(found) - 75)
    told = [row for row, reason in enumerate(selection.reasons) if "fill up" in reason or "too many" in reason]
    assert told == odd.tolist()
    assert top[selection.rows].all()


@pytest.mark.parametrize("stride", [2, 5])
def test_what_is_too_many_or_missing_goes_by_alignment(pool, signals, values, stride):
    """A stride that leaves more, or fewer, than is to be kept."""
    itm = values["blip.alignment"]
    for keep in (20, 140):
        selection = TLDRReleased(stride=stride)(pool, signals, keep=keep, seed=0)
        found = on_stride(selection.scores["cluster"], stride) & (itm >= np.sort(itm)[150])
        kept = np.zeros(300, bool)
        kept[selection.rows] = True
        if found.sum() > keep:
            assert itm[found & kept].min() >= itm[found & ~kept].max()
            assert not (kept & ~found).any()
        else:
            assert kept[found].all()
            assert itm[kept & ~found].min() >= itm[~kept].max()


def test_distances_are_no_squares(pool, signals):
    selection = TLDRReleased()(pool, signals, keep=75, seed=0)
    clusters = cluster_count(1000, 300, 32)
    label, square = cluster("raw", signals, clusters=clusters, seed=0)
    assert np.array_equal(selection.scores["cluster"], label)
    assert selection.scores["distance"] == pytest.approx(np.sqrt(square))
    assert square.max() > 0.1


def test_no_draw_is_made(pool, signals, monkeypatch):
    """Only the clusters depend on the seed."""
    label = np.arange(300) % 7
    monkeypatch.setattr("tldr.selector.tldr_released.cluster", lambda *_, **__: (label, np.zeros(300)))
    one, other = (TLDRReleased()(pool, signals, keep=75, seed=seed) for seed in (0, 1))
    assert np.array_equal(one.rows, other.rows)


def test_code_ids_are_taken_as_numbers(pool, signals, monkeypatch):
    asked = []

    def cluster(feature, signals, *, clusters, seed):
        asked.append((feature, clusters))
        return np.zeros(300, int), np.zeros(300)

    monkeypatch.setattr("tldr.selector.tldr_released.cluster", cluster)
    for options in ({}, {"clusters": 4}, {"rows_per_cluster": 100}, {"rows_per_cluster": 301}):
        TLDRReleased(**options)(pool, signals, keep=75, seed=0)
    assert asked == [("raw", 9), ("raw", 4), ("raw", 3), ("raw", 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 0}, r"selector\.clusters=0 must be at least 1"),
        ({"stride": 0.5}, r"selector\.stride=0\.5 must be at least 1"),
        ({"half": 0.0}, r"selector\.half=0\.0: what image-text matching leaves"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        TLDRReleased(**options)
