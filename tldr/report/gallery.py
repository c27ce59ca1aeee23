"""Pairs as a person looks at them: pictures in rows, each with its caption, as a matplotlib figure for notebooks.

Shapes: N pairs, n of its rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tldr.data.images import ImageError, ImageStore
from tldr.pairs import Pairs
from tldr.report.figure import GRID, INK, KEPT, MUTED

DROPPED = "#b4531f"
CAPTION, NOTE = 180, 180  # characters shown
_CELL, _GAP, _LINE, _LETTERS = 1.5, 0.16, 0.148, 23  # inches of a picture, between, of a line; letters in a line
_FONT = 8.5


def gallery_figure(
    pairs: Pairs,
    rows: Sequence[int] | np.ndarray,
    *,
    title: str = "",
    kept: np.ndarray | None = None,
    notes: Sequence[str] | np.ndarray = (),
    columns: int = 6,
) -> Figure:
    """The pairs at ``rows`` (n,). ``notes`` (n,) say something more about each, under its caption. Where ``kept`` (N,)
    is given, a blue line stands under a picture that was kept, an orange one under one that was dropped."""
    store = ImageStore(pairs.root)
    captions = [_lines(pairs.captions[int(row)].as_py(), CAPTION) for row in rows]
    remarks = [_lines(str(note), NOTE) for note in notes] or [[] for _ in captions]
    texts = list(zip(captions, remarks, strict=True))
    strips = [range(start, min(start + columns, len(texts))) for start in range(0, len(texts), columns)]
    heights = [
        _CELL + (1 + max(len(c) + len(r) for c, r in texts[strip.start : strip.stop])) * _LINE for strip in strips
    ]
    head = 0.42 if title else 0.1
    width, height = columns * (_CELL + _GAP) + _GAP, head + sum(heights) + _GAP * len(heights)
    figure = Figure(figsize=(width, height), facecolor="white")
    if title:
        figure.text(_GAP / width, 1 - 0.2 / height, title, color=INK, fontsize=11.5, fontweight="bold", va="center")
    top = height - head
    for strip, strip_height in zip(strips, heights, strict=True):
        for place, i in enumerate(strip):
            left = _GAP + place * (_CELL + _GAP)
            axes = figure.add_axes((left / width, (top - _CELL) / height, _CELL / width, _CELL / height))
            row = int(rows[i])
            _picture(axes, store, pairs.images[row].as_py())
            if kept is not None:
                axes.axhline(0, color=KEPT if kept[row] else DROPPED, linewidth=5)
            line = top - _CELL - 0.07
            for lines, colour in zip(texts[i], (INK, MUTED), strict=True):
                figure.text(left / width, line / height, "\n".join(lines), color=colour, fontsize=_FONT, va="top",
                            linespacing=1.25, parse_math=False)  # fmt: skip
                line -= len(lines) * _LINE + 0.03
        top -= strip_height + _GAP
    return figure


def _lines(words: str, limit: int) -> list[str]:
    shown = words if len(words) <= limit else words[:limit].rstrip() + "…"
    return textwrap.wrap(shown, _LETTERS)


def _picture(axes: Axes, store: ImageStore, locator: str) -> None:
    """The whole picture in a square, or the reason why there is none."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)  # or a white picture has no edge
    axes.set_facecolor(GRID)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    try:
        image = store.load(locator)
    except ImageError as error:
        words = "\n".join(textwrap.wrap(error.reason, 20))
        axes.text(0.5, 0.5, words, color=DROPPED, fontsize=_FONT, ha="center", va="center", parse_math=False)
        return
    image.thumbnail((480, 480))
    x, y = (1 - side / max(image.size) for side in image.size)
    axes.imshow(np.asarray(image), extent=(x / 2, 1 - x / 2, y / 2, 1 - y / 2), interpolation="nearest")
    axes.set(xlim=(0, 1), ylim=(0, 1))
