"""The pieces of a self-contained HTML page: style, facts, tables, and pictures as thumbnails inside the file.

Captions are what people wrote: they are escaped, shortened, and set in their own direction.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from tldr.data.images import ImageError, ImageStore

THUMBNAIL = 176  # pixels of the longer side: sharp at the size shown, 5 KB
CAPTION = 240  # characters shown of a caption

STYLE = """
:root { color-scheme: light dark;
  --paper:#fff; --card:#f6f8fa; --ink:#1c2530; --muted:#66717e; --grid:#e3e7ec;
  --kept:#1f6fde; --pool:#bcc6d2; --dropped:#b4531f; --flag:#fdeee4 }
@media (prefers-color-scheme: dark) { :root {
  --paper:#12161c; --card:#1b2129; --ink:#e8ecf1; --muted:#9aa6b4; --grid:#2c343f;
  --kept:#5ea0ff; --pool:#4a5665; --dropped:#f0935c; --flag:#3a2a1f } }
* { box-sizing: border-box }
body { margin:0 auto; max-width:1120px; padding:40px 24px 80px; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif }
h1 { font-size:28px; line-height:1.2; margin:0 0 4px; letter-spacing:-.01em; text-wrap:balance }
h2 { font-size:19px; margin:52px 0 4px } h3 { font-size:15px; margin:26px 0 8px }
h3 small { font-weight:400; font-size:13px; color:var(--muted); margin-left:6px }
p.note { margin:0 0 14px; color:var(--muted); max-width:75ch }
dl.facts { display:grid; grid-template-columns:repeat(auto-fill,minmax(148px,1fr)); gap:10px; margin:26px 0 0 }
dl.facts div { background:var(--card); border-radius:10px; padding:10px 14px }
dl.facts dt { color:var(--muted); font-size:12.5px }
dl.facts dd { margin:0; font-size:21px; font-weight:600; font-variant-numeric:tabular-nums; overflow-wrap:anywhere }
dl.facts dd.long { font-size:13px; font-weight:500; line-height:1.9 }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr)); gap:18px 24px }
.charts svg { width:100%; height:auto; display:block } .charts text { font-family:inherit !important }
table { border-collapse:collapse; font-variant-numeric:tabular-nums }
th,td { text-align:right; padding:7px 0 7px 34px; border-bottom:1px solid var(--grid) }
th:first-child,td:first-child { text-align:left; padding-left:0 }
th { font-size:13px; font-weight:500; color:var(--muted) } td.kept { color:var(--kept); font-weight:600 }
.tiles { display:grid; grid-template-columns:repeat(auto-fill,minmax(140px,1fr)); gap:14px 12px }
figure { margin:0; min-width:0; font-size:13px; line-height:1.38 }
figure .frame { height:124px; background:var(--card); border-radius:8px; overflow:hidden; display:flex;
  align-items:center; justify-content:center; border-bottom:3px solid var(--grid); margin-bottom:6px }
figure.kept .frame { border-color:var(--kept) } figure.dropped .frame { border-color:var(--dropped) }
figure img { width:100%; height:100%; object-fit:contain }
figure .missing { padding:8px; font-size:12px; color:var(--dropped); overflow-wrap:anywhere }
figcaption p { margin:0 0 3px; overflow-wrap:anywhere; white-space:pre-line }
figcaption .before { color:var(--muted) } figcaption .after::before { content:"\\2192\\00a0"; color:var(--kept) }
figcaption small { display:block; font-size:11.5px; color:var(--muted); overflow-wrap:anywhere }
figcaption .uid { font-family:ui-monospace, Menlo, Consolas, monospace; font-size:10.5px; opacity:.8 }
.flag { display:inline-block; background:var(--flag); color:var(--dropped); border-radius:4px; padding:0 6px;
  font-size:11px }
.sides { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr)); gap:10px 28px }
.sides .tiles { grid-template-columns:repeat(auto-fill,minmax(98px,1fr)) } .sides .frame { height:92px }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def facts_list(facts: Mapping[str, object]) -> str:
    """The facts as cards."""
    cards = []
    for name, value in facts.items():
        text = fact(name, value)
        kind = ' class="long"' if len(text) > 12 else ""
        cards.append(f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd{kind}>{escape(text)}</dd></div>")
    return f'<dl class="facts">{"".join(cards)}</dl>'


def fact(name: str, value: object) -> str:
    """A value as a person reads it; ``compression`` and ``seconds`` by their names."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name.endswith("compression"):
        return f"{100 * value:g} %"
    if name.endswith("seconds"):
        if value < 60:
            return f"{value:.1f} s"
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{value:.1f} s"
        )
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, kept: int) -> str:
    """A table; the column numbered ``kept`` stands out."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=kept' * (i == kept)}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text(words: str, kind: str = "caption") -> str:
    """A caption as a paragraph: escaped, shortened, from right to left where its letters are."""
    shown = words if len(words) <= CAPTION else words[:CAPTION].rstrip() + "…"
    return f'<p class="{kind}" dir="auto">{escape(shown)}</p>'


def tile(picture: str, lines: Iterable[str], *, kind: str = "") -> str:
    """A picture (`Thumbnails`) with what is to be said of it."""
    return (
        f'<figure class="{kind}"><div class="frame">{picture}</div><figcaption>{"".join(lines)}</figcaption></figure>'
    )


class Thumbnails:
    """Pictures by locator, each small and inside the page; one that cannot be decoded says why."""

    def __init__(self, root: str) -> None:
        self._store = ImageStore(root)
        self._made: dict[str, str] = {}

    def __call__(self, locator: str) -> str:
        """An ``<img>``, or the reason why there is none."""
        if locator not in self._made:
            self._made[locator] = self._make(locator)
        return self._made[locator]

    def _make(self, locator: str) -> str:
        try:
            image = self._store.load(locator)
        except ImageError as error:
            return f'<span class="missing">{escape(error.reason[:CAPTION])}</span>'
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=78, optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        return f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" alt="">'
