import sys

import numpy as np
import pytest

from tldr.data import basic
from tldr.pairs import Pairs


def build(captions: list[str], **columns) -> Pairs:
    images = [f"{i}.png" for i in range(len(captions))]
    uids = [f"{i:03d}" for i in range(len(captions))]
    return Pairs.build({"uid": uids, "image": images, "caption": captions, **columns}, root=".")


def test_words_and_characters_are_counted():
    pool = build(["", "a  b", " a dog runs ", "größe", "a,b c"])
    words, characters = basic.captions(pool, words=3, characters=6, language=None)
    assert words.value.tolist() == [0, 2, 3, 1, 2]
    assert words.broken.tolist() == [True, True, False, True, True]
    assert characters.value.tolist() == [0, 4, 12, 5, 5]  # characters, not bytes
    assert basic.broken([words, characters]).tolist() == [2, 2, 0, 2, 2]
    assert basic.told([words, characters], 1) == "words: 2 (minimum 3); characters: 4 (minimum 6)"
    assert basic.told([words, characters], 2) == ""


@pytest.mark.parametrize("names", basic.SIZES)
def test_small_and_narrow_pictures_are_found(names):
    sizes = [(200, 600), (199, 300), (200, 601), (1000, 1000), (None, 300)]
    columns = {name: [size[at] for size in sizes] for at, name in enumerate(names)}
    side, aspect = basic.pictures(build(["a"] * 5, **columns), side=200, aspect=3.0)
    assert side.broken.tolist() == [False, True, False, False, False]
    assert aspect.broken.tolist() == [False, False, True, False, False]
    assert side.of(1) == "shorter side: 199 pixels (minimum 200)"
    assert aspect.of(2) == "aspect ratio: 3.00 (maximum 3)"


def test_without_sizes_there_is_no_rule():
    assert basic.pictures(build(["a"], width=[3]), side=200, aspect=3.0) == []


def test_the_language_of_captions():
    pytest.importorskip("py3langid")
    pool = build(["two dogs play with a ball in the garden", "zwei Hunde spielen mit einem Ball im Garten"] * 3)
    rule = basic.captions(pool, words=0, characters=0, language="en")[2]
    assert rule.value.tolist() == ["en", "de"] * 3
    assert np.array_equal(rule.broken, [False, True] * 3)
    assert rule.of(1) == "language de, not en"


def test_a_missing_detector_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(ValueError, match=r"selector\.language needs py3langid: pip install 'tldr-vlp\[language\]'"):
        basic.detector()
