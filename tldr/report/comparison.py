"""Subsets of one pool side by side: what a model learns from each, and what of the planted noise is left in it.

A row is a mapping with ``name`` and, as far as known, ``pairs``, ``steps``, ``seconds``, ``tr@1`` and ``ir@1`` (per
cent), ``mismatched`` and ``duplicates`` (shares of the pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tldr.atomic import atomic_path

Row = Mapping[str, Any]

LABELS = {"full": "Full pool", "random": "Random", "tldr": "TL;DR"}
HERO = "tldr"
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "pairs": ("pairs", "{:,}".format),
    "steps": ("steps", "{:,}".format),
    "seconds": ("seconds", "{:,.0f}".format),
    "tr@1": ("TR@1", "{:.1f}".format),
    "ir@1": ("IR@1", "{:.1f}".format),
    "mismatched": ("mismatched", "{:.1%}".format),
    "duplicates": ("duplicates", "{:.1%}".format),
}
_INK, _MUTED, _RULE = "#1c2530", "#6b7683", "#aab3be"
_BLUES, _GREYS, _ORANGES = ("#1f6fde", "#8db8f2"), ("#7d8896", "#c5ccd5"), ("#cf6a2c", "#efbd98")
_BAR = 0.3


def comparison_table(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text; a column that no row has is left out."""
    cells = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, numbers to the right."""
    head, *body = (f"| {' | '.join(line)} |" for line in _cells(rows))
    rule = "| --- |" + " ---: |" * (len(_cells(rows)[0]) - 1)
    return "\n".join([head, rule, *body])


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    head = ["subset", *(COLUMNS[name][0] for name in names)]
    body = [[str(row["name"]), *(COLUMNS[n][1](row[n]) if n in row else "–" for n in names)] for row in rows]
    return [head, *body]


def comparison_figure(rows: Sequence[Row], path: Path, *, title: str) -> Path:
    """Draw the rows to ``path`` (PNG): recall as bars, beside it the planted noise where the rows know it."""
    known = all("mismatched" in row and "duplicates" in row for row in rows)
    height = 1.75 + 0.82 * len(rows)
    figure = Figure(figsize=(10.4, height), facecolor="white")
    bottom, top = 0.3 / height, 1 - 1.42 / height
    left = figure.add_axes((0.165, bottom, 0.475 if known else 0.79, top - bottom))
    _text(figure, 0.025, 1 - 0.45 / height, title, size=17, weight="bold")
    _text(figure, 0.025, 1 - 0.76 / height, _subtitle(rows), size=10.5, color=_MUTED)
    _dress(left, len(rows), max(max(row["tr@1"], row["ir@1"]) for row in rows), "Recall@1 on held-out pictures, %")
    for place, row in enumerate(reversed(rows)):
        hero = row["name"] == HERO
        _bars(left, place, (row["tr@1"], row["ir@1"]), _BLUES if hero else _GREYS, "{:.1f}".format, bold=hero)
        _label(left, place, row, hero=hero)
    _key(left, _GREYS, ("text retrieval, TR@1", "image retrieval, IR@1"))
    if known:
        right = figure.add_axes((0.715, bottom, 0.24, top - bottom))
        for place, row in enumerate(reversed(rows)):
            shares = (100 * row["mismatched"], 100 * row["duplicates"])
            _bars(right, place, shares, _ORANGES, _per_cent, bold=row["name"] == HERO)
        highest = 100 * max(max(row["mismatched"], row["duplicates"]) for row in rows)
        _dress(right, len(rows), highest, "Planted noise in the pairs")
        _key(right, _ORANGES, ("mismatched", "duplicates"))
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
    return Path(path)


def _subtitle(rows: Sequence[Row]) -> str:
    steps = {row["steps"] for row in rows}
    same = f"for {steps.pop():,} steps" if len(steps) == 1 else "for different numbers of steps"
    return f"The same model trained on each set {same}; evaluated on clean pairs that none of them holds"


def _label(axes: Axes, place: int, row: Row, *, hero: bool) -> None:
    """At the left of a row's bars: its name, and how many pairs it has."""
    name, at = LABELS.get(row["name"], str(row["name"])), (0, (place + 0.5) / (axes.get_ylim()[1] + 0.5))
    colour = _BLUES[0] if hero else _INK
    _note(axes, name, at, (-12, 8), color=colour, fontsize=13, fontweight="bold", ha="right", va="center")
    _note(axes, f"{row['pairs']:,} pairs", at, (-12, -9), color=_MUTED, fontsize=10, ha="right", va="center")


def _per_cent(value: float) -> str:
    return f"{value:.1f} %" if 0 < value < 1 else f"{value:.0f} %"


def _bars(
    axes: Axes,
    place: int,
    values: Sequence[float],
    colours: Sequence[str],
    shown: Callable[[float], str],
    *,
    bold: bool,
) -> None:
    weight = "bold" if bold else "normal"
    for value, colour, shift in zip(values, colours, (0.53 * _BAR, -0.53 * _BAR), strict=True):
        bar = axes.barh(place + shift, value, _BAR, color=colour)
        axes.bar_label(bar, [shown(value)], padding=5, fontsize=10, color=_INK, fontweight=weight)


def _dress(axes: Axes, rows: int, highest: float, heading: str) -> None:
    axes.set_ylim(-0.5, rows - 0.5)
    axes.set_xlim(0, max(highest, 1e-9) * 1.14)  # room for the last number
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color=_RULE, linewidth=1)
    axes.set_xticks([])  # every bar says its number
    axes.set_yticks([])
    _note(axes, heading, (0, 1), (0, 24), color=_INK, fontsize=10.5, fontweight="bold")


def _key(axes: Axes, colours: Sequence[str], names: Sequence[str]) -> None:
    """Under the heading: which shade is which."""
    start = 0.0
    for colour, name in zip(colours, names, strict=True):
        _note(axes, "■", (0, 1), (start, 7), color=colour, fontsize=10)
        _note(axes, name, (0, 1), (start + 11, 7), color=_MUTED, fontsize=9)
        start += 26 + 4.9 * len(name)


def _note(axes: Axes, words: str, at: tuple[float, float], shift: tuple[float, float], **style: Any) -> None:
    """Words at ``at`` (0 to 1 across the axes), shifted by so many points."""
    axes.annotate(words, at, shift, xycoords="axes fraction", textcoords="offset points", **style)


def _text(
    figure: Figure, x: float, y: float, words: str, *, size: float, weight: str = "normal", color: str = _INK
) -> None:
    figure.text(x, y, words, fontsize=size, fontweight=weight, color=color, va="center")
