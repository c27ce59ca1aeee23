"""Made pairs as one HTML page that needs no network: each picture with its caption, and the real one it began from.

Nothing of the pool is kept or dropped where pairs are made (dataset distillation), so this page has no fates to tell;
its size does not grow with their number. Equal pairs give equal pages.

Shapes: n made pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import numpy as np

from tldr.atomic import atomic_path
from tldr.pairs import DIGEST, REQUIRED, Pairs
from tldr.report.page import Thumbnails, facts_list, page, text, tile

SHOWN = 48  # pairs
HIDDEN = {*REQUIRED, DIGEST}  # shown otherwise, or of no interest to the eye
BEGAN = "began_from"  # the column with the uid of the real pair that a made one was at first


def write_made_report(
    folder: Path, pool: Pairs, made: Pairs, *, title: str, facts: Mapping[str, object], seed: int = 0
) -> Path:
    """Write ``report.html`` into ``folder``: a sample of the pairs ``made`` from ``pool``. ``facts`` stand on top, as
    in `tldr.report.selection.write_report`."""
    file = Path(folder) / "report.html"
    with atomic_path(file) as temporary:
        temporary.write_text(page(title, _body(pool, made, title, facts, seed)), encoding="utf-8")
    return file


def _body(pool: Pairs, made: Pairs, title: str, facts: Mapping[str, object], seed: int) -> Iterator[str]:
    counts = f"{len(made):,} pairs made from {len(pool):,}. Pool {pool.hash}, at {pool.root}"
    yield f'<header><h1>{escape(title)}</h1><p class="note">{escape(counts)}</p></header>'
    yield facts_list(facts)
    rows = np.sort(np.random.default_rng(seed).choice(len(made), min(SHOWN, len(made)), replace=False))
    began = BEGAN in made.table.column_names
    yield f"<h2>What was made <small>{len(rows):,} of {len(made):,}</small></h2>"
    note = "Above: the made picture, with all that is known of it. Below: the real pair that it was at first."
    yield f'<p class="note">{note if began else "Each picture with all that is known of it."}</p><div class="tiles">'
    ours, real = Thumbnails(made.root), Thumbnails(pool.root)
    for row in map(int, rows):
        values = made.table.slice(row, 1).to_pylist()[0]
        told = [f"{name.replace('_', ' ')}: {_short(value)}" for name, value in values.items() if name not in HIDDEN]
        lines = [text(values["caption"]), *(f"<small>{escape(line)}</small>" for line in told)]
        yield "<div>" + tile(ours(values["image"]), lines, kind="kept")
        if began:
            at = int(pool.rows_of([values[BEGAN]])[0])
            yield tile(real(pool.images[at].as_py()), [text(pool.captions[at].as_py(), "before")])
        yield "</div>"
    yield "</div>"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
