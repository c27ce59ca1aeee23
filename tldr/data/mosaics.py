"""Mosaics of CIFAR-10 pictures, and captions of varied wording: what `cifar_scenes` is made of.

A mosaic is two or three of CIFAR's pictures in the four cells of a coloured canvas, or a close-up: one of them that
fills it. Classes and canvas colours follow Zipf's law. All randomness comes from the generator that is passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tldr.data.scenes import vary, zipf
from tldr.data.view import NUMBERS, RELATIONS, Item, View, holds

CANVASES = {
    "white": (245, 245, 245), "black": (15, 15, 15), "blue": (31, 90, 220), "red": (214, 39, 40),
    "green": (30, 150, 60), "yellow": (245, 215, 40),
}  # fmt: skip
ANIMALS = ("dog", "cat", "bird", "horse", "deer", "frog")
NOUNS = ("dog", "automobile", "cat", "bird", "airplane", "ship", "horse", "truck", "deer", "frog")  # by frequency
PLACES = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")
SYNONYMS = {
    "dog": ("puppy",), "automobile": ("car",), "cat": ("kitten",), "airplane": ("plane", "jet"), "ship": ("boat",),
    "truck": ("lorry",), "horse": ("pony",), "frog": ("toad",), "canvas": ("background", "backdrop"),
    "things": ("pictures",), "photo": ("picture", "photograph"), "above": ("over",), "below": ("under",),
}  # fmt: skip
PREFIXES = ("", "", "", "a photo of ", "an image of ", "there is ", "we see ", "collage: ", "this shows ")
CLOSE_UPS = {
    "full": (
        "a close-up of a {}",
        "a photo of a {} that fills the picture",
        "a {} seen from close by",
        "only a {}",
    ),
    "relation": ("a photo of a {}", "a {} close to the camera", "a {} in front of everything"),
    "terse": ("{}", "a {}", "{} photo", "the {}"),
    "count": ("one {}", "a single {}", "one {} and nothing else", "one thing: a {}"),
}
NOISE = 4  # standard deviation, of 255


@dataclass(frozen=True)
class Tile:
    """One CIFAR picture: its class, which of the class it is, and its cell (0 top left to 3 bottom right)."""

    noun: str
    picture: int
    cell: int


@dataclass(frozen=True)
class Mosaic:
    """Tiles in reading order on a canvas. A close-up has one tile and no canvas: ``""``."""

    canvas: str
    tiles: tuple[Tile, ...]


def draw_mosaic(rng: np.random.Generator, count: Callable[[str], int], *, close_ups: float) -> Mosaic:
    """A mosaic whose classes and canvas follow Zipf's law; ``count`` says how many pictures a class has."""
    close = rng.random() < close_ups
    number = 1 if close else int(rng.integers(2, 4))
    nouns = [str(noun) for noun in rng.choice(NOUNS, size=number, p=zipf(len(NOUNS)))]
    cells = [0] if close else sorted(int(cell) for cell in rng.choice(4, size=number, replace=False))
    tiles = tuple(Tile(noun, int(rng.integers(count(noun))), cell) for noun, cell in zip(nouns, cells, strict=True))
    return Mosaic("" if close else str(rng.choice(list(CANVASES), p=zipf(len(CANVASES)))), tiles)


def rarity(mosaic: Mosaic) -> float:
    """Minus the log-probability (nats) of the rarest class shown: how far out in the tail it lies."""
    share = zipf(len(NOUNS))
    return -math.log(min(share[NOUNS.index(tile.noun)] for tile in mosaic.tiles))


def says_nothing_else(told: Mosaic, shown: Mosaic) -> bool:
    """Whether all that ``told`` has is shown, so that its captions may be true of ``shown`` as well."""
    return {tile.noun for tile in told.tiles} <= {tile.noun for tile in shown.tiles}


def view(mosaic: Mosaic) -> View:
    """The mosaic, no close-up, as statements and questions see it."""
    return View(mosaic.canvas, tuple(map(_item, mosaic.tiles)), "thing", "canvas")


def _item(tile: Tile) -> Item:
    return Item(tile.noun, "", tile.cell // 2, tile.cell % 2, PLACES[tile.cell])


def caption(mosaic: Mosaic, style: str, rng: np.random.Generator) -> str:
    """A sentence about ``mosaic``, in the styles of `tldr.data.scenes.caption`."""
    if style not in CLOSE_UPS:
        raise ValueError(f"style={style!r}; choose from {', '.join(CLOSE_UPS)}")
    if not mosaic.canvas:
        return vary(str(rng.choice(CLOSE_UPS[style])).format(mosaic.tiles[0].noun), rng, SYNONYMS)
    tiles = list(mosaic.tiles)
    if rng.random() < 0.2:  # people do not always begin at the top left
        tiles = [tiles[int(k)] for k in rng.permutation(len(tiles))]
    if style == "full":
        text = _full(mosaic, tiles, rng)
    elif style == "relation":
        one, two = tiles[0], tiles[1]
        relation = str(rng.choice([each for each in RELATIONS if holds(_item(one), each, _item(two))]))
        text = f"a {one.noun} {relation} a {two.noun}"
    elif style == "terse":
        text = " and ".join(tile.noun for tile in tiles[:2])
        text += f" on {mosaic.canvas}" if rng.random() < 0.4 else ""
    else:
        text = _count(mosaic, tiles, rng)
    prefix = str(rng.choice(PREFIXES)) if style in ("full", "relation") and not text.startswith("on ") else ""
    return vary(prefix + text, rng, SYNONYMS)


def _full(mosaic: Mosaic, tiles: Sequence[Tile], rng: np.random.Generator) -> str:
    parts = [f"a {tile.noun} {PLACES[tile.cell]}" for tile in tiles]
    text = ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"{text} on a {mosaic.canvas} canvas" if rng.random() < 0.5 else f"on a {mosaic.canvas} canvas, {text}"


def _count(mosaic: Mosaic, tiles: Sequence[Tile], rng: np.random.Generator) -> str:
    if rng.random() < 0.6:
        return f"{NUMBERS[len(tiles)]} things on {mosaic.canvas}: " + ", ".join(tile.noun for tile in tiles)
    animals = sum(tile.noun in ANIMALS for tile in tiles)
    kinds = ((animals, "animal"), (len(tiles) - animals, "vehicle"))
    text = " and ".join(f"{NUMBERS[number]} {kind}{'s' * (number > 1)}" for number, kind in kinds if number)
    return f"{text} on {mosaic.canvas}"


def render(
    mosaic: Mosaic, pictures: Callable[[str, int], Image.Image], rng: np.random.Generator, *, size: int = 64
) -> Image.Image:
    """An RGB picture of size x size pixels; places, brightness and noise vary from call to call, nothing is flipped.

    ``pictures`` gives those of CIFAR, 32 x 32. At size 64 the tiles are their very pixels, brightness and noise aside.
    """
    half, shake = size // 2, max(1, size // 32)
    if mosaic.canvas:
        canvas = Image.new("RGB", (size, size), CANVASES[mosaic.canvas])
        for tile in mosaic.tiles:
            picture = pictures(tile.noun, tile.picture)
            picture = picture if half == picture.width else picture.resize((half, half), Image.Resampling.BICUBIC)
            x, y = (int(shift) for shift in rng.integers(-shake, shake + 1, 2))
            canvas.paste(picture, (tile.cell % 2 * half + x, tile.cell // 2 * half + y))
    else:
        picture = pictures(mosaic.tiles[0].noun, mosaic.tiles[0].picture)
        x, y = (float(shift) for shift in rng.uniform(0, 2, 2))  # of its 32 pixels, two are cut off
        box = (x, y, x + picture.width - 2, y + picture.height - 2)
        canvas = picture.resize((size, size), Image.Resampling.BICUBIC, box)
    pixels = np.asarray(canvas, dtype=np.float32) * np.float32(rng.uniform(0.8, 1.15))
    pixels += NOISE * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
