"""Every refiner of conf/refiner keeps the contract; what each of them does is below, or in a file of its own."""

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tldr.pairs import Pairs
from tldr.refiner.append import Append
from tldr.refiner.base import GENERATED, ORIGINAL, Refiner
from tldr.refiner.best import Best
from tldr.refiner.capfilt import CapFilt
from tldr.refiner.none import Keep
from tldr.refiner.replace import Replace

CONF = Path(__file__).parents[2] / "conf" / "refiner"
OLD = ["a red disc", "  free shipping!  ", "ein roter\nKreis 🏖", "IMG_0042", "a star", "a box"]
NEW = ["a red circle on white", "a blue star", "a red circle", "", "   ", " a green box "]


class Author:
    """Writes `NEW`, and says of any caption how well it fits: what it was told, else 0."""

    def __init__(self, fits: dict[str, float] | None = None) -> None:
        self.fits = fits or {}

    def write(self, pairs: Pairs) -> list[str]:
        return [NEW[int(image.removesuffix(".png"))] for image in pairs.images.to_pylist()]

    def align(self, pairs: Pairs, scorer: str = "") -> np.ndarray:
        return np.array([self.fits.get(text, 0.0) for text in pairs.captions.to_pylist()], np.float32)


@pytest.fixture
def subset() -> Pairs:
    columns = {"uid": [f"u{i}" for i in range(6)], "image": [f"{i}.png" for i in range(6)], "caption": OLD}
    return Pairs.build({**columns, "width": [64] * 6}, root="/data", provenance={"parent": "abc"})


@pytest.fixture(params=sorted({path.stem for path in CONF.glob("*.yaml")} - {"paragraph"}))  # it needs a checkpoint
def refiner(request) -> Refiner:
    made = instantiate(OmegaConf.load(CONF / f"{request.param}.yaml"), _convert_="all")
    assert isinstance(made, Refiner)
    return made


def test_pairs_stay_the_same_pairs(refiner, subset):
    refined = refiner(subset, Author())
    assert refined.uids.equals(subset.uids)
    assert refined.images.equals(subset.images)
    assert refined.column("width").tolist() == [64] * 6
    assert (refined.root, refined.provenance) == (subset.root, subset.provenance)
    assert all(caption.strip() for caption in refined.captions.to_pylist())
    assert subset.captions.to_pylist() == OLD  # they are frozen


def test_originals_stay_in_a_column(refiner, subset):
    refined = refiner(subset, Author())
    if refiner.writes:
        assert refined.table[ORIGINAL].to_pylist() == OLD
        assert [text.strip() for text in refined.table[GENERATED].to_pylist()] == [text.strip() for text in NEW]
    else:
        assert refined.table.equals(subset.table)


def test_what_is_refined_again_keeps_its_first_caption(refiner, subset):
    once = Append()(subset, Author())
    again = refiner(once, Author(dict.fromkeys(NEW, 1.0)))
    assert once.captions.to_pylist()[0] == "a red disc; a red circle on white"
    assert again.table[ORIGINAL].to_pylist() == OLD


def test_where_nothing_was_written_the_original_stays_to_the_letter(refiner, subset):
    for i in (3, 4):
        assert refiner(subset, Author({"": 99.0})).captions[i].as_py() == OLD[i]


def test_a_judge_that_says_nan_is_refused(refiner, subset):
    class Undecided(Author):
        def align(self, pairs: Pairs, scorer: str = "") -> np.ndarray:
            return np.where(np.arange(len(pairs)) == 3, np.nan, super().align(pairs, scorer))

    if not isinstance(refiner, (Best, CapFilt)):
        pytest.skip("it judges nothing")
    with pytest.raises(ValueError, match=r"the scorer (blip|that writes) gives NaN for 1 pairs, such as u3"):
        refiner(subset, Undecided())


def test_a_refined_set_can_be_written_and_hashed(refiner, subset, tmp_path):
    refined = refiner(subset, Author())
    again = Pairs.open(refined.write(tmp_path))
    assert again.table.equals(refined.table)
    assert (again.hash == subset.hash) == (refined.captions.equals(subset.captions))


def test_none_needs_nobody_to_write(subset):
    refined = Keep()(subset, None)
    assert refined.table.equals(subset.table)
    assert refined.hash == subset.hash


def test_append_joins_both(subset):
    captions = Append()(subset, Author()).captions.to_pylist()
    assert captions[0] == "a red disc; a red circle on white"
    assert captions[2] == "ein roter\nKreis 🏖; a red circle"
    assert captions[1].strip() == "free shipping!; a blue star"
    assert Append(joiner=" | ")(subset, Author()).captions[5].as_py() == "a box | a green box"


@pytest.mark.parametrize("joiner", [None, 0])
def test_what_joins_is_a_text(joiner):
    with pytest.raises(ValueError, match=rf"refiner\.joiner={joiner} must be a text to put between the two captions"):
        Append(joiner=joiner)


@pytest.mark.parametrize("margin", [float("nan"), "2", None])
def test_the_margin_is_a_number(margin):
    with pytest.raises(ValueError, match=r"refiner\.margin=.* must be a number of nats by which the generated"):
        Best(margin=margin)


def test_append_cuts_nothing(subset):
    long = subset.with_column("caption", ["word " * 2000] * 6)
    captions = Append()(long, Author()).captions.to_pylist()
    assert captions[0] == ("word " * 2000).rstrip() + "; a red circle on white"


def test_replace_takes_the_new_one(subset):
    captions = Replace()(subset, Author()).captions.to_pylist()
    assert captions == ["a red circle on white", "a blue star", "a red circle", "IMG_0042", "a star", "a green box"]


def test_best_takes_the_new_one_where_it_is_ahead_by_the_margin(subset):
    fits = {OLD[0]: 1.0, NEW[0]: 3.5, OLD[1]: -4.0, NEW[1]: -1.5, OLD[2]: 5.0, NEW[2]: 5.0}
    captions = Best(margin=2.0)(subset, Author(fits)).captions.to_pylist()
    assert captions == [NEW[0], NEW[1], *OLD[2:]]
    assert Best(margin=2.5)(subset, Author(fits)).captions.to_pylist() == OLD  # no more than the margin is not enough
    eager = Best(margin=-0.5)(subset, Author(fits)).captions.to_pylist()
    assert eager == [NEW[0], NEW[1], NEW[2], OLD[3], OLD[4], "a green box"]


def test_best_keeps_originals_to_the_letter(subset):
    assert Best()(subset, Author({NEW[1]: -9.0})).captions.to_pylist() == OLD


def test_best_judges_the_new_captions_with_their_own_pictures(subset):
    """The writer sees pairs of the same uids and pictures, with the one and the other caption."""
    asked = []

    class Watcher(Author):
        def align(self, pairs: Pairs, scorer: str = "") -> np.ndarray:
            asked.append((pairs.images.to_pylist(), pairs.captions.to_pylist()))
            return super().align(pairs, scorer)

    Best()(subset, Watcher())
    images = subset.images.to_pylist()
    written = [new.strip() or old for new, old in zip(NEW, OLD, strict=True)]  # no empty text is judged
    assert sorted(asked) == sorted([(images, OLD), (images, written)])
