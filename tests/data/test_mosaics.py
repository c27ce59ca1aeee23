"""What a caption of a mosaic says is read back by a parser written from the wording, and held against the mosaic."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from tldr.data.mosaics import (
    CANVASES,
    NOUNS,
    PLACES,
    SYNONYMS,
    Mosaic,
    Tile,
    caption,
    draw_mosaic,
    rarity,
    render,
    says_nothing_else,
    view,
)
from tldr.data.scenes import STYLES, zipf

STEMS = {word: stem for stem, words in SYNONYMS.items() for word in words}


def plain(text: str) -> str:
    """The caption without synonyms, and with every article ``a``."""
    text = re.sub(r"\w+", lambda word: STEMS.get(word[0], word[0]), text)
    return re.sub(r"\ban (?=[aeiou])", "a ", text)


def mosaics(count: int, close_ups: float = 0.0) -> list[Mosaic]:
    rng = np.random.default_rng(1)
    return [draw_mosaic(rng, lambda _: 50, close_ups=close_ups) for _ in range(count)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def shade(noun: str, number: int) -> Image.Image:
    """A plain picture of each class, in a grey of its own."""
    return Image.new("RGB", (32, 32), (40 + 20 * NOUNS.index(noun),) * 3)


def test_full_captions_say_all_and_nothing_else(rng):
    for mosaic in mosaics(300):
        text = plain(caption(mosaic, "full", rng))
        told = re.findall(rf"a (\w+) ({'|'.join(PLACES)})", text)
        assert {(tile.noun, PLACES[tile.cell]) for tile in mosaic.tiles} == set(told), text
        assert re.findall(r"on a (\w+) canvas", text) == [mosaic.canvas]


def test_relations_terse_captions_and_counts_are_true(rng):
    for mosaic in mosaics(400):
        nouns = [tile.noun for tile in mosaic.tiles]
        found = re.search(
            r"a (\w+) (above|below|to the left of|to the right of) a (\w+)$", plain(caption(mosaic, "relation", rng))
        )
        assert found
        one, relation, two = found.groups()
        true = {
            "above": lambda a, b: a // 2 < b // 2,
            "below": lambda a, b: a // 2 > b // 2,
            "to the left of": lambda a, b: a % 2 < b % 2,
            "to the right of": lambda a, b: a % 2 > b % 2,
        }[relation]
        assert any((a.noun, b.noun) == (one, two) and true(a.cell, b.cell) for a in mosaic.tiles for b in mosaic.tiles)
        *named, canvas = re.fullmatch(r"(\w+) and (\w+)(?: on (\w+))?", plain(caption(mosaic, "terse", rng))).groups()  # pyright: ignore
        assert set(named) <= set(nouns)
        assert canvas in (None, mosaic.canvas)
        text = plain(caption(mosaic, "count", rng))
        words = {"one": 1, "two": 2, "three": 3}
        assert re.search(r" on (\w+)", text)[1] == mosaic.canvas  # pyright: ignore[reportOptionalSubscript]
        if "things" in text:
            assert words[text.split()[0]] == len(nouns)
            assert sorted(text.split(": ")[1].split(", ")) == sorted(nouns)
        else:
            animals = sum(noun in ("dog", "cat", "bird", "horse", "deer", "frog") for noun in nouns)
            said = {kind: words[n] for n, kind in re.findall(r"(\w+) (animal|vehicle)s?", text)}
            assert said == {k: n for k, n in (("animal", animals), ("vehicle", len(nouns) - animals)) if n}


def test_close_ups_are_called_by_their_class_in_every_style(rng):
    close = Mosaic("", (Tile("airplane", 3, 0),))
    for style in STYLES:
        texts = {caption(close, style, rng) for _ in range(40)}
        assert len(texts) > 2
        assert all("airplane" in plain(text) and "a airplane" not in text for text in texts)
    with pytest.raises(ValueError, match="style='long'; choose from full, relation, terse, count"):
        caption(close, "long", rng)


def test_pictures_show_the_tiles_in_their_cells():
    for mosaic in mosaics(60):
        for size in (64, 96):
            pixels = np.asarray(render(mosaic, shade, np.random.default_rng(5), size=size), float)
            assert pixels.shape == (size, size, 3)
            half = size // 2
            filled = {tile.cell: tile.noun for tile in mosaic.tiles}
            scale = None
            for cell in range(4):
                y, x = cell // 2 * half, cell % 2 * half
                seen = np.median(pixels[y + 8 : y + half - 8, x + 8 : x + half - 8], (0, 1))
                if cell in filled:
                    expected = 40 + 20 * NOUNS.index(filled[cell])
                    ratio = seen.mean() / expected
                    scale = ratio if scale is None else scale
                    assert ratio == pytest.approx(scale, rel=0.06)  # one brightness for the picture
                    assert seen.std() < 4
            assert scale is not None
            assert 0.75 < scale < 1.2


def test_a_close_up_fills_the_picture_and_nothing_is_flipped(rng):
    ramp = np.zeros((32, 32, 3), np.uint8)
    ramp[..., 0] = np.arange(32) * 7  # darker on the left
    ramp[..., 1] = np.arange(32)[:, None] * 7  # and at the top
    picture = Image.fromarray(ramp)
    for mosaic in (Mosaic("", (Tile("dog", 0, 0),)), Mosaic("white", (Tile("dog", 0, 0), Tile("dog", 0, 3)))):
        for _ in range(10):
            pixels = np.asarray(render(mosaic, lambda *_: picture, rng), float)
            part = pixels if not mosaic.canvas else pixels[4:28, 4:28]
            assert np.corrcoef(part[..., 0].mean(0), np.arange(part.shape[1]))[0, 1] > 0.98
            assert np.corrcoef(part[..., 1].mean(1), np.arange(part.shape[0]))[0, 1] > 0.98


def test_two_renderings_differ_but_are_functions_of_the_generator():
    mosaic = mosaics(1)[0]
    one, same, other = (np.asarray(render(mosaic, shade, np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_classes_and_canvases_follow_zipfs_law():
    drawn = mosaics(3000, 0.15)
    assert sum(not one.canvas for one in drawn) / 3000 == pytest.approx(0.15, abs=0.02)
    nouns = [tile.noun for one in drawn for tile in one.tiles]
    assert [nouns.count(n) / len(nouns) for n in NOUNS] == pytest.approx(zipf(10), abs=0.02)
    canvases = [one.canvas for one in drawn if one.canvas]
    assert [canvases.count(c) / len(canvases) for c in CANVASES] == pytest.approx(zipf(6), abs=0.03)
    for one in drawn:
        assert len(one.tiles) in ((2, 3) if one.canvas else (1,))
        assert len({tile.cell for tile in one.tiles}) == len(one.tiles)


def test_rarity_views_and_what_may_be_true_of_another():
    two = Mosaic("blue", (Tile("dog", 1, 0), Tile("frog", 2, 3)))
    assert rarity(two) == pytest.approx(-math.log(zipf(10)[9]))
    assert says_nothing_else(Mosaic("", (Tile("frog", 9, 0),)), two)
    assert not says_nothing_else(Mosaic("blue", (Tile("dog", 1, 0), Tile("cat", 2, 3))), two)
    seen = view(two)
    assert (seen.ground, seen.thing, seen.behind) == ("blue", "thing", "canvas")
    assert [(i.noun, i.colour, i.row, i.column, i.place) for i in seen.items] == [
        ("dog", "", 0, 0, "at the top left"),
        ("frog", "", 1, 1, "at the bottom right"),
    ]
