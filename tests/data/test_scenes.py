"""What a caption says is read back by a parser written from the wording, and held against scene and pixels."""

import math
import re

import numpy as np
import pytest

from tldr.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    PLACES,
    SHAPES,
    STYLES,
    SYNONYMS,
    Scene,
    Thing,
    caption,
    draw_scene,
    rarity,
    render,
    zipf,
)

STEMS = {word: stem for stem, words in SYNONYMS.items() for word in words}


def plain(text: str) -> str:
    """The caption without synonyms."""
    return re.sub(r"\w+", lambda word: STEMS.get(word[0], word[0]), text)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(1)
    return [draw_scene(rng) for _ in range(count)]


def test_full_captions_say_all_and_nothing_else(rng):
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    for scene in scenes(200):
        text = plain(caption(scene, "full", rng))
        told = re.findall(rf"an? (large|small) (\w+) (\w+) ({places})(?=,| and | on a |$)", text)
        assert {Thing(c, s, z, PLACES.index(p)) for z, c, s, p in told} == set(scene.things), text
        assert re.findall(r"on an? (\w+) background", text) == [scene.background]


def test_relations_are_true(rng):
    seen = set()
    for scene in scenes(300):
        text = plain(caption(scene, "relation", rng))
        found = re.search(r"an? (\w+) (\w+) (above|below|to the left of|to the right of) an? (\w+) (\w+) (\w+)$", text)
        assert found, text
        c1, s1, relation, z2, c2, s2 = found.groups()
        holds = {
            "above": lambda a, b: a // 3 < b // 3,
            "below": lambda a, b: a // 3 > b // 3,
            "to the left of": lambda a, b: a % 3 < b % 3,
            "to the right of": lambda a, b: a % 3 > b % 3,
        }[relation]
        seen.add(relation)
        said = (c1, s1, z2, c2, s2)
        assert any(
            said == (one.colour, one.shape, two.size, two.colour, two.shape) and holds(one.cell, two.cell)
            for one in scene.things
            for two in scene.things
        ), (text, scene)
    assert len(seen) == 4


def test_terse_captions_and_counts_are_true(rng):
    for scene in scenes(300):
        objects = [(thing.colour, thing.shape) for thing in scene.things]
        text = plain(caption(scene, "terse", rng))
        *named, background = re.fullmatch(r"(.+?) and (.+?)(?: on (\w+))?", text).groups()  # pyright: ignore
        assert all(tuple(name.split()) in objects for name in named), (text, scene)
        assert background in (None, scene.background)
        text = plain(caption(scene, "count", rng))
        number, background, listed = re.fullmatch(r"(\w+) shapes on (\w+): (.+)", text).groups()  # pyright: ignore
        assert (number, background) == (NUMBERS[len(objects)], scene.background)
        assert sorted(item.split()[0] for item in listed.split(", ")) == sorted(colour for colour, _ in objects)


def test_wording_varies_and_is_english(rng):
    for style in STYLES:
        for scene in scenes(10):
            texts = {caption(scene, style, rng) for _ in range(20)}
            assert len(texts) > 2
            assert not any("a orange" in text or "an red" in text for text in texts)
    with pytest.raises(ValueError, match="style='long'; choose from full, relation, terse, count"):
        caption(scenes(1)[0], "long", rng)


def nearest(pixel: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """The colour of the same hue and saturation; brightness varies from picture to picture."""
    unit = pixel / np.linalg.norm(pixel)
    return max(palette, key=lambda name: float(unit @ np.array(palette[name]) / np.linalg.norm(palette[name])))


def test_pictures_show_each_colour_in_its_cell(rng):
    for colour in COLOURS:
        for shape in SHAPES:
            cell = int(rng.integers(9))
            scene = Scene(str(rng.choice(list(BACKGROUNDS))), (Thing(colour, shape, "large", cell),))
            picture = np.asarray(render(scene, rng, size=48), dtype=np.float64)
            assert picture.shape == (48, 48, 3)
            cells = picture.reshape(3, 16, 3, 16, 3).transpose(0, 2, 1, 3, 4)
            drawn = cells[cell // 3, cell % 3].reshape(-1, 3)
            empty = cells[(cell // 3 + 1) % 3, (cell % 3 + 1) % 3].reshape(-1, 3)
            assert empty.std(0).max() < 8  # nothing but noise
            away = np.linalg.norm(drawn - np.median(empty, 0), axis=1)
            assert (away > 40).mean() > 0.15
            assert nearest(np.median(drawn[away > 0.6 * away.max()], 0), COLOURS) == colour, (colour, shape)


def test_shapes_and_sizes_look_different():
    """Averaged over their jitter, no two of them are the same drawing."""
    rng = np.random.default_rng(0)
    drawings = {}
    for shape in SHAPES:
        for size in ("large", "small"):
            scene = Scene("black", (Thing("yellow", shape, size, 4),))
            drawings[shape, size] = np.mean([np.asarray(render(scene, rng), float) for _ in range(20)], 0)
    for one in drawings:
        for other in drawings:
            if one != other:
                assert np.abs(drawings[one] - drawings[other]).mean() > 1.0, (one, other)


def test_two_renderings_differ_but_are_functions_of_the_generator():
    scene = scenes(1)[0]
    one, same, other = (np.asarray(render(scene, np.random.default_rng(seed))) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_attributes_follow_zipfs_law():
    assert zipf(4, 1.0) == pytest.approx(np.array([12, 6, 4, 3]) / 25)
    things = [thing for scene in scenes(2000) for thing in scene.things]
    for values, names in (([t.colour for t in things], list(COLOURS)), ([t.shape for t in things], SHAPES)):
        share = np.array([values.count(name) for name in names]) / len(things)
        assert share == pytest.approx(zipf(len(names)), abs=0.02)
    cells = np.bincount([thing.cell for thing in things], minlength=9) / len(things)
    assert cells == pytest.approx(np.full(9, 1 / 9), abs=0.02)


def test_scenes_begin_with_the_salient_and_never_share_a_cell():
    for scene in scenes(300):
        assert 2 <= len(scene.things) <= 4
        assert len({thing.cell for thing in scene.things}) == len(scene.things)
        order = [(thing.size != "large", thing.cell) for thing in scene.things]
        assert order == sorted(order)


def test_rarity_is_the_rarest_object():
    common, rare = Thing("red", "circle", "large", 0), Thing("lime", "heart", "small", 1)
    p = zipf(10)[9] * zipf(8)[7]
    assert rarity(Scene("white", (common, rare))) == pytest.approx(-math.log(p))
    assert rarity(Scene("white", (common, common))) < rarity(Scene("white", (common, rare)))
