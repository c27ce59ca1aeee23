"""A selection as one HTML page that needs no network: what was kept, by which scores, and pictures to judge it by.

Its size does not grow with the pool's: everything shown is a summary or a sample, drawn from ``seed``. Equal selections
give equal pages.

Shapes: N pairs of the pool, n kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tldr.atomic import atomic_path
from tldr.pairs import TRUTH, Pairs
from tldr.report.decisions import Decisions, Gallery
from tldr.report.figure import cluster_share_figure, cluster_size_figure, score_figure, svg
from tldr.report.page import Thumbnails, facts_list, page, table, text, tile
from tldr.report.truth import planted

GALLERY, CLUSTERS, PER_CLUSTER, REFINED = 7, 5, 4, 14  # how many pictures of each
ORIGINAL = "caption_original"
FLAGS = {"truth_mismatched": "planted: mismatched", "truth_duplicate": "planted: duplicate"}


def write_report(
    folder: Path,
    pool: Pairs,
    decisions: pa.Table,
    *,
    title: str,
    facts: Mapping[str, object],
    refined: Pairs | None = None,
    seed: int = 0,
) -> Path:
    """Write ``report.html`` into ``folder``: the ``decisions`` on every pair of ``pool``, and ``refined``, the kept
    pairs with their new captions, where a refiner has written any.

    ``facts`` stand on top, in their order; ``compression`` (the share removed) and ``seconds`` are formatted as what
    they are.
    """
    file = Path(folder) / "report.html"
    with atomic_path(file) as temporary:
        body = _body(Decisions(pool, decisions), title=title, facts=facts, refined=refined, seed=seed)
        temporary.write_text(page(title, body), encoding="utf-8")
    return file


def _body(
    made: Decisions, *, title: str, facts: Mapping[str, object], refined: Pairs | None, seed: int
) -> Iterator[str]:
    pool, thumbnails = made.pool, Thumbnails(made.pool.root)
    counts = f"{made.kept.sum():,} of {len(pool):,} pairs. Pool {pool.hash}, at {pool.root}"
    yield f'<header><h1>{escape(title)}</h1><p class="note">{escape(counts)}</p></header>'
    yield facts_list(facts)
    yield from _charts(made)
    yield from _truth(made, seed)
    yield "<h2>What was kept, what was dropped</h2>"
    yield '<p class="note">Each pair with the reason why it was kept (blue line) or dropped (orange line).</p>'
    for gallery in made.galleries(GALLERY, seed=seed):
        yield f"<h3>{escape(gallery.title)} <small>{escape(gallery.note)}</small></h3>"
        yield _tiles(made, gallery, thumbnails)
    yield from _clusters(made, thumbnails, seed)
    if refined is not None and ORIGINAL in refined.table.column_names:
        yield from _refined(refined, thumbnails, seed)


def _charts(made: Decisions) -> Iterator[str]:
    yield "<h2>Before and after</h2>"
    yield '<p class="note">Numbers of pairs. Grey: the pool. Blue: what was kept of it. Triangles: the means.</p>'
    yield '<div class="charts">'
    for name, values in {**made.scores, "Words of the caption": made.pool.words}.items():
        label = name[0].upper() + name[1:]
        yield svg(score_figure(values, made.kept, label=label), alt=f"{label}: pool and kept")
    if made.cluster is not None:
        yield svg(cluster_size_figure(made.cluster, made.kept), alt="Pairs in every cluster, and the kept of them")
        yield svg(cluster_share_figure(made.cluster, made.kept), alt="Share kept of every cluster")
    yield "</div>"


def _truth(made: Decisions, seed: int) -> Iterator[str]:
    """What was planted: in the pool, in a draw as large as what was kept, and in what was kept."""
    pool, kept = made.pool, np.flatnonzero(made.kept)
    if not any(name.startswith(TRUTH) for name in pool.table.column_names):
        return
    drawn = np.random.default_rng(seed).choice(len(pool), len(kept), replace=False)
    columns = [planted(pool, rows) for rows in (np.arange(len(pool)), drawn, kept)]
    names = {"mismatched": "Captions of another picture", "duplicates": "Pairs that repeat another's scene"}
    rows = [[names[name], *(f"{100 * column[name]:.1f} %" for column in columns)] for name in columns[0]]
    if "truth_rarity" in pool.table.column_names:
        rarity = pool.column("truth_rarity")
        means = (float(rarity[of].mean()) for of in (slice(None), drawn, kept))
        rows.append(["Rarity of a scene's rarest object (mean, nats)", *(f"{mean:.2f}" for mean in means)])
    yield "<h2>What was planted, and what is left</h2>"
    yield '<p class="note">The noise planted in this pool is known. The selector did not see these columns.</p>'
    yield table(["", "Pool", "Random draw of equal size", "Kept"], rows, kept=3)


def _clusters(made: Decisions, thumbnails: Thumbnails, seed: int) -> Iterator[str]:
    shown = made.divided_clusters(CLUSTERS, PER_CLUSTER, seed=seed)
    if not shown:
        return
    yield "<h2>Inside a few clusters</h2>"
    yield '<p class="note">Pictures that the method found similar. Left: what it kept. Right: what it dropped.</p>'
    for number, *sides in shown:
        yield f'<h3>Cluster {number}</h3><div class="sides">'
        for side in sides:
            yield f'<div><p class="note">{side.note} {side.title}</p>{_tiles(made, side, thumbnails, short=True)}</div>'
        yield "</div>"


def _refined(refined: Pairs, thumbnails: Thumbnails, seed: int) -> Iterator[str]:
    changed = np.flatnonzero(pc.not_equal(refined.captions, refined.table[ORIGINAL].cast(pa.large_string())).to_numpy())
    count = min(REFINED, len(changed))
    yield "<h2>Captions, refined</h2>"
    yield f'<p class="note">{len(changed):,} of {len(refined):,} captions changed. Grey: before.</p><div class="tiles">'
    for row in np.sort(np.random.default_rng(seed).choice(changed, count, replace=False)):
        before, after = (refined.table[name][row].as_py() for name in (ORIGINAL, "caption"))
        lines = [text(before, "before"), text(after, "after"), _uid(refined, row)]
        yield tile(thumbnails(refined.images[row].as_py()), lines, kind="kept")
    yield "</div>"


def _tiles(made: Decisions, gallery: Gallery, thumbnails: Thumbnails, *, short: bool = False) -> str:
    """The pairs of a gallery: picture, caption and, unless ``short``, reason and uid."""
    pool, tiles = made.pool, []
    for row in gallery.rows:
        lines = [text(pool.captions[row].as_py())]
        lines += [
            f'<span class="flag">{flag}</span> '
            for name, flag in FLAGS.items()
            if name in pool.table.column_names and pool.table[name][row].as_py()
        ]
        if not short:
            lines += [f"<small>{escape(made.reason(row))}</small>", _uid(pool, row)]
        kind = "kept" if made.kept[row] else "dropped"
        tiles.append(tile(thumbnails(pool.images[row].as_py()), lines, kind=kind))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _uid(pairs: Pairs, row: int) -> str:
    return f'<small class="uid">{escape(pairs.uids[row].as_py())}</small>'
