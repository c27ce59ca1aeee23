"""Scenes of coloured shapes, their pictures, and captions of varied wording: what `shapes` is made of.

A scene is two to four objects in a 3 x 3 grid on a coloured background. Colours, shapes and backgrounds follow Zipf's
law, so that some combinations are common and many are rare, as in web data. All randomness comes from the generator
that is passed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tldr.data.view import Item, View, articled

COLOURS = {
    "red": (214, 39, 40), "blue": (31, 90, 220), "green": (30, 150, 60), "yellow": (245, 215, 40),
    "orange": (250, 130, 20), "purple": (130, 60, 180), "pink": (245, 130, 190), "cyan": (40, 200, 220),
    "brown": (125, 75, 40), "lime": (160, 235, 60),
}  # fmt: skip
BACKGROUNDS = {
    "white": (245, 245, 245), "black": (15, 15, 15), "grey": (128, 128, 128), "navy": (20, 25, 80),
    "beige": (232, 214, 180), "teal": (10, 85, 85),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
SIZES = ("large", "small")
PLACES = (
    "at the top left", "at the top", "at the top right", "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
NUMBERS = {2: "two", 3: "three", 4: "four"}
SYNONYMS = {
    "circle": ("disc", "dot"), "square": ("box",), "cross": ("plus",), "diamond": ("rhombus",), "ring": ("hoop",),
    "large": ("big", "huge"), "small": ("little", "tiny"), "red": ("crimson",), "purple": ("violet",),
    "cyan": ("turquoise",), "grey": ("gray",), "background": ("backdrop",), "middle": ("centre",),
}  # fmt: skip
SYNONYM_SHARE = 0.3
PREFIXES = ("", "", "", "a picture of ", "an image of ", "there is ", "we see ", "drawing: ", "this shows ")
STYLES = ("full", "relation", "terse", "count")
STYLE_SHARES = (0.4, 0.2, 0.25, 0.15)


@dataclass(frozen=True)
class Thing:
    """One object: its words, and its cell of the grid (0 top left to 8 bottom right)."""

    colour: str
    shape: str
    size: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """A background and its objects, the salient first: large before small, then in reading order."""

    background: str
    things: tuple[Thing, ...]


def zipf(count: int, exponent: float = 0.8) -> np.ndarray:
    """(count,) probabilities that fall as rank ** -exponent."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene whose attributes follow Zipf's law."""
    count = int(rng.choice([2, 3, 4], p=[0.4, 0.35, 0.25]))
    cells = rng.choice(9, size=count, replace=False)
    colours = rng.choice(list(COLOURS), size=count, p=zipf(len(COLOURS)))
    shapes = rng.choice(SHAPES, size=count, p=zipf(len(SHAPES)))
    sizes = rng.choice(SIZES, size=count)
    things = [Thing(str(c), str(s), str(z), int(k)) for c, s, z, k in zip(colours, shapes, sizes, cells, strict=True)]
    things.sort(key=lambda thing: (SIZES.index(thing.size), thing.cell))
    return Scene(str(rng.choice(list(BACKGROUNDS), p=zipf(len(BACKGROUNDS)))), tuple(things))


def rarity(scene: Scene) -> float:
    """Minus the log-probability (nats) of the scene's rarest colour and shape: how far out in the tail it lies."""
    colour, shape = zipf(len(COLOURS)), zipf(len(SHAPES))
    likelihood = (colour[list(COLOURS).index(t.colour)] * shape[SHAPES.index(t.shape)] for t in scene.things)
    return -math.log(min(likelihood))


def view(scene: Scene) -> View:
    """The scene as statements and questions see it."""
    items = (Item(t.shape, t.colour, t.cell // 3, t.cell % 3, PLACES[t.cell]) for t in scene.things)
    return View(scene.background, tuple(items), "shape", "background")


# --- captions -------------------------------------------------------------------------------------------------------


def caption(scene: Scene, style: str, rng: np.random.Generator) -> str:
    """A sentence about ``scene``. ``full`` names everything; ``relation`` two objects and how they lie; ``terse`` one
    or two objects without ado; ``count`` how many objects there are and their colours."""
    things = list(scene.things)
    if rng.random() < 0.2:  # people do not always begin with the salient
        rng.shuffle(things)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if style == "full":
        text = _full(scene, things, rng)
    elif style == "relation":
        text = _relation(things, rng)
    elif style == "terse":
        text = " and ".join(f"{t.colour} {t.shape}" for t in things[:2])
        text += f" on {scene.background}" if rng.random() < 0.4 else ""
    elif style == "count":
        text = f"{NUMBERS[len(things)]} shapes on {scene.background}: " + ", ".join(
            f"{t.colour} {t.shape}" if rng.random() < 0.5 else t.colour for t in things
        )
    else:
        raise ValueError(f"style={style!r}; choose from {', '.join(STYLES)}")
    prefix = str(rng.choice(PREFIXES)) if style in ("full", "relation") and not text.startswith("on ") else ""
    return prefix + vary(text, rng)


def _full(scene: Scene, things: Sequence[Thing], rng: np.random.Generator) -> str:
    parts = [f"a {t.size} {t.colour} {t.shape} {PLACES[t.cell]}" for t in things]
    text = ", ".join(parts[:-1]) + " and " + parts[-1]
    if rng.random() < 0.5:
        return f"{text} on a {scene.background} background"
    return f"on a {scene.background} background, {text}"


def _relation(things: Sequence[Thing], rng: np.random.Generator) -> str:
    one, two = things[0], things[1]
    rows, columns = one.cell // 3 - two.cell // 3, one.cell % 3 - two.cell % 3
    relations = []
    if rows:
        relations.append("above" if rows < 0 else "below")
    if columns:
        relations.append("to the left of" if columns < 0 else "to the right of")
    relation = str(rng.choice(relations))
    return f"a {one.colour} {one.shape} {relation} a {two.size} {two.colour} {two.shape}"


def vary(text: str, rng: np.random.Generator, synonyms: Mapping[str, Sequence[str]] = SYNONYMS) -> str:
    """The text with some of its words replaced by others of the same meaning."""
    words = []
    for word in text.split(" "):
        stem = word.rstrip(",:")
        if stem in synonyms and rng.random() < SYNONYM_SHARE:
            word = str(rng.choice(synonyms[stem])) + word[len(stem) :]
        words.append(word)
    return articled(" ".join(words))


# --- pictures -------------------------------------------------------------------------------------------------------


def render(scene: Scene, rng: np.random.Generator, *, size: int = 64) -> Image.Image:
    """An RGB picture of size x size pixels; position, extent, brightness and noise vary from call to call."""
    fine = 3 * size  # drawn larger, then averaged: smooth edges
    picture = Image.new("RGB", (fine, fine), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(picture)
    cell = fine / 3
    for thing in scene.things:
        shift = rng.uniform(-0.08, 0.08, 2)
        x = (thing.cell % 3 + 0.5 + shift[0]) * cell
        y = (thing.cell // 3 + 0.5 + shift[1]) * cell
        radius = (0.44 if thing.size == "large" else 0.26) * cell * rng.uniform(0.92, 1.08)
        _draw(pen, thing.shape, x, y, radius, COLOURS[thing.colour], BACKGROUNDS[scene.background])
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    pixels = pixels * rng.uniform(0.8, 1.15) + rng.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


Colour = tuple[int, int, int]


def _draw(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: Colour, back: Colour) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
    elif shape == "ring":
        pen.ellipse(box, fill=fill)
        pen.ellipse((x - 0.5 * r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), fill=back)
    elif shape == "cross":
        pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=fill)
        pen.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=fill)
    elif shape == "heart":
        pen.ellipse((x - r, y - r, x + 0.05 * r, y + 0.15 * r), fill=fill)
        pen.ellipse((x - 0.05 * r, y - r, x + r, y + 0.15 * r), fill=fill)
        pen.polygon([(x - 0.93 * r, y - 0.2 * r), (x + 0.93 * r, y - 0.2 * r), (x, y + r)], fill=fill)
    else:
        corners = {"triangle": 3, "diamond": 4, "star": 10}[shape]
        reach = [r if shape != "star" or i % 2 == 0 else 0.42 * r for i in range(corners)]
        angles = [2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
        pen.polygon([(x + d * math.cos(a), y + d * math.sin(a)) for d, a in zip(reach, angles, strict=True)], fill=fill)
