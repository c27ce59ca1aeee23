"""CapFilt: the filter judges both texts, what does not match goes, and no pair is lost."""

import numpy as np
import pytest

from tldr.pairs import Pairs
from tldr.refiner.capfilt import JUDGED_GENERATED, JUDGED_ORIGINAL, KEPT, VERDICT, CapFilt

OLD = ["right", "right", "wrong", "bad", "worse", "right", "wrong"]
NEW = ["true", "false", "true", "worse", "bad", "", ""]
FITS = {"right": 2.0, "true": 3.0, "wrong": -1.0, "false": -0.5, "bad": -2.0, "worse": -3.0}


class Author:
    """Writes `NEW`; a text fits as `FITS` says, or, by the writer's own judgement, ten times as well."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def write(self, pairs: Pairs) -> list[str]:
        return [NEW[int(image.removesuffix(".png"))] for image in pairs.images.to_pylist()]

    def align(self, pairs: Pairs, scorer: str = "") -> np.ndarray:
        texts = pairs.captions.to_pylist()
        self.asked.append((scorer, texts))
        return np.array([FITS[text] * (1 if scorer else 10) for text in texts], np.float32)


@pytest.fixture
def subset() -> Pairs:
    rows = range(len(OLD))
    columns = {"uid": [f"u{i}" for i in rows], "image": [f"{i}.png" for i in rows], "caption": OLD}
    return Pairs.build(columns, root="/data")


def test_what_does_not_match_is_dropped(subset):
    refined = CapFilt(both="generated")(subset, Author())
    verdicts = ["both", "original", "generated", "neither", "neither", "original", "neither"]
    assert refined.table[VERDICT].to_pylist() == verdicts
    # Of the two bad ones the better, and where nothing was written what there is.
    assert refined.captions.to_pylist() == ["true", "right", "true", "bad", "bad", "right", "wrong"]
    assert refined.table[KEPT].to_pylist() == [["right", "true"], ["right"], ["true"], [], [], ["right"], []]


def test_what_the_filter_said_stands_beside(subset):
    refined = CapFilt()(subset, Author())
    assert refined.table[JUDGED_ORIGINAL].to_pylist() == [FITS[text] for text in OLD]
    assert refined.table[JUDGED_GENERATED].to_pylist() == [FITS.get(text) for text in NEW]


@pytest.mark.parametrize(
    ("both", "caption"), [("original", "right"), ("generated", "true"), ("best", "true"), ("append", "right; true")]
)
def test_of_two_that_match(subset, both, caption):
    refined = CapFilt(both=both)(subset, Author()).captions.to_pylist()
    assert refined == [caption, "right", "true", "bad", "bad", "right", "wrong"]


def test_the_lot_is_fair_and_falls_for_each_pair_alone():
    n = 2000
    rows = range(n)
    columns = {"uid": [f"u{i:04d}" for i in rows], "image": ["0.png"] * n, "caption": ["right"] * n}
    pairs = Pairs.build(columns, root="/data")
    drawn = CapFilt()(pairs, Author()).captions.to_pylist()
    assert 900 < drawn.count("true") < 1100
    odd = np.arange(1, n, 2)
    assert CapFilt()(pairs.take(odd), Author()).captions.to_pylist() == drawn[1::2]
    assert CapFilt(seed=1)(pairs, Author()).captions.to_pylist() != drawn


def test_the_threshold_is_a_strict_cut(subset):
    assert CapFilt(threshold=2.0)(subset, Author()).table[VERDICT].to_pylist()[:3] == [
        "generated",
        "neither",
        "generated",
    ]
    assert CapFilt(threshold=-9.0)(subset, Author()).table[VERDICT].to_pylist() == ["both"] * 5 + ["original"] * 2


def test_a_scorer_of_its_own_or_the_writer_judges(subset):
    assert CapFilt().needs == ("blip.alignment",)
    assert CapFilt(filter="writer").needs == ()
    for name, scorer in (("blip", "blip"), ("writer", "")):
        author = Author()
        refined = CapFilt(filter=name, threshold=25.0 if name == "writer" else 0.0)(subset, author)
        assert [asked for asked, _ in author.asked] == [scorer, scorer]
        assert all(text for _, texts in author.asked for text in texts), "no empty text is judged"
        assert refined.table[VERDICT][0].as_py() == ("generated" if name == "writer" else "both")


@pytest.mark.parametrize(
    ("wrong", "says"), [({"both": "all"}, "refiner.both='all'; choose from draw"), ({"threshold": np.nan}, "threshold")]
)
def test_wrong_settings_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        CapFilt(**wrong)
