"""Charts of a selection, as matplotlib figures for notebooks and as SVG for pages.

An SVG takes its colours from the page's CSS variables (--ink, --muted, --grid, --kept, --pool) and its font from the
page, so that it is legible on light and on dark.

Shapes: N pairs of the pool.
"""

from __future__ import annotations

import html
import io
import re

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

INK, MUTED, GRID, KEPT, POOL = "#1c2530", "#66717e", "#e3e7ec", "#1f6fde", "#bcc6d2"
ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", KEPT: "kept", POOL: "pool"}
_BINS = 48


def score_figure(values: np.ndarray, kept: np.ndarray, *, label: str) -> Figure:
    """How (N,) ``values`` are distributed in the pool and among the ``kept`` (N,) of it. The outermost thousandths are
    drawn into the bins at the ends."""
    figure, axes = _figure(5.4, 2.5)
    low, high = (float(v) for v in np.quantile(values, (0.001, 0.999)))
    if np.issubdtype(values.dtype, np.integer):
        step = max(1, round((high - low) / _BINS))
        edges = np.arange(np.floor(low), high + step + 1, step) - 0.5
    else:
        edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    inside = np.clip(values, edges[0], edges[-1])
    for rows, colour in ((inside, POOL), (inside[kept], KEPT)):
        axes.stairs(np.histogram(rows, edges)[0], edges, fill=True, color=colour)
    axes.set_xlim(edges[0], edges[-1])
    _legend(axes, label, f"pool, mean {values.mean():.3g}", f"kept, mean {values[kept].mean():.3g}")
    for mean, colour in ((values.mean(), MUTED), (values[kept].mean(), KEPT)):
        axes.plot(np.clip(mean, edges[0], edges[-1]), -0.035, marker="^", color=colour, markersize=6, clip_on=False,
                  transform=axes.get_xaxis_transform(), zorder=3)  # fmt: skip
    axes.tick_params(axis="x", pad=7)
    return figure


def cluster_size_figure(cluster: np.ndarray, kept: np.ndarray) -> Figure:
    """The pairs in every cluster and the ``kept`` of them, from the largest cluster to the smallest."""
    sizes, chosen = _cluster_counts(cluster, kept)
    order = np.argsort(-sizes, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, 240).round().astype(int))]  # of 3000 clusters, enough to see
    figure, axes = _figure(5.4, 2.5)
    edges = np.linspace(0, len(order), len(shown) + 1)
    for counts, colour in ((sizes, POOL), (chosen, KEPT)):
        axes.stairs(counts[shown], edges, fill=True, color=colour)
    axes.set_xlim(0, len(order))
    _legend(axes, f"Pairs in the {len(order):,} clusters", "pool", "kept")
    return figure


def cluster_share_figure(cluster: np.ndarray, kept: np.ndarray) -> Figure:
    """In how many clusters which share was kept."""
    sizes, chosen = _cluster_counts(cluster, kept)
    figure, axes = _figure(5.4, 2.5)
    axes.stairs(*np.histogram(chosen / sizes, 25, (0, 1)), fill=True, color=KEPT)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _legend(axes, "Clusters, by the share that was kept", "", f"overall {100 * chosen.sum() / sizes.sum():.3g} %")
    return figure


def svg(figure: Figure, *, alt: str) -> str:
    """The figure as an inline SVG element that follows the page's colours; equal figures give equal text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tldr"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # the same in every figure, and an id must be unique in a page
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, role in ROLES.items():
        text = text.replace(colour, f"var(--{role})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _cluster_counts(cluster: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every cluster that has any: its pairs, and the kept of them."""
    sizes = np.bincount(cluster[cluster >= 0])
    chosen = np.bincount(cluster[(cluster >= 0) & kept], minlength=len(sizes))
    return sizes[sizes > 0], chosen[sizes > 0]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.085, 0.15, 0.87, 0.68))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=8.5, length=0)
    axes.tick_params(axis="x", length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value:,.0f}")
    )
    return figure, axes


def _legend(axes: Axes, title: str, pool: str, kept: str) -> None:
    """Above the axes: what is shown, and at the right what the colours mean."""
    axes.text(-0.08, 1.13, title, transform=axes.transAxes, color=INK, fontsize=10.5, fontweight="bold")
    at = {"transform": axes.transAxes, "fontsize": 9, "ha": "right"}
    right = axes.text(1, 1.13, kept, color=KEPT, fontweight="bold", **at)
    axes.annotate(
        pool,
        (0, 0),
        (-12, 0),
        xycoords=right,
        textcoords="offset points",
        color=MUTED,
        fontsize=9,
        ha="right",
        va="bottom",
    )
