"""Why was this pair kept, or dropped? What a finished selection's folder tells of it: ``decisions.parquet``,
``quarantine.parquet`` and, for the caption, the pool in the cache. No model is asked and no picture opened.

Shapes: N pairs of the pool.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tldr.pairs import Pairs
from tldr.report.selection import ORIGINAL

_NEAR = 3  # uids that are told in place of one that is not there


def explained(folder: str | Path, uids: str | Sequence[str], *, cache: str | Path) -> str:
    """A paragraph for each of ``uids`` of the selection in ``folder``; ``cache`` holds the pool that it was made from.
    The name of a picture, or a sample's key in a shard, stands for the pairs that have it.

    Raises ValueError where there is no finished selection, and, suggesting similar uids, for one that is neither in its
    pool nor in quarantine."""
    folder = Path(folder)
    file = folder / "decisions.parquet"
    if not file.is_file():
        raise ValueError(
            f"no finished selection in {folder}: give explain= with the overrides of the selection, or its out=..."
        )
    decisions = pq.read_table(file)
    bad = folder / "quarantine.parquet"
    quarantine = pq.read_table(bad) if bad.is_file() else None
    told = []
    for uid in map(str, [uids] if isinstance(uids, str) or not isinstance(uids, Sequence) else uids):
        pooled, lost = ([uid] if len(_rows(decisions, uid)) else []), []
        if not pooled and quarantine is not None:
            lost = quarantine.take(pa.array(_rows(quarantine, uid)[:1])).to_pylist()
        if not pooled and not lost:  # a picture's name, of whose pairs some may be in the pool, others not
            pooled = _named(folder, uid, Path(cache))
            if quarantine is not None:
                lost = quarantine.filter(_called(quarantine["image"], uid)).to_pylist()
        told += [_of_the_pool(folder, decisions, int(_rows(decisions, one)[0]), one, Path(cache)) for one in pooled]
        told += map(_quarantined, lost)
        if not pooled and not lost:
            near = _near(decisions, quarantine, uid)
            quotes = f"; a uid of digits, or with special characters, must be quoted twice: \"explain='{uid}'\""
            raise ValueError(f"uid {uid!r} is not in {file}, nor quarantined{near}{quotes * (not uid.isidentifier())}")
    return "\n\n".join(told)


def _rows(table: pa.Table, uid: str) -> np.ndarray:
    """The rows of a uid; none where it is not there."""
    return np.flatnonzero(pc.equal(table["uid"], uid).fill_null(False).to_numpy())


def _of_the_pool(folder: Path, decisions: pa.Table, row: int, uid: str, cache: Path) -> str:
    decision = decisions.slice(row, 1).to_pylist()[0]
    lines = {"caption": _caption(folder, uid, cache), "reason": decision["reason"]}
    if decision["cluster"] >= 0:
        inside = pc.equal(decisions["cluster"], decision["cluster"])
        kept, size = pc.sum(pc.and_(inside, decisions["kept"])).as_py(), pc.sum(inside).as_py()
        if size < len(decisions):  # a single cluster tells nothing
            lines["cluster"] = f"{decision['cluster']}: {kept} of its {size} pairs were kept"
    for field in decisions.schema:
        if field.name not in ("uid", "kept", "reason", "cluster"):
            lines[field.name] = _score(decisions[field.name], decision[field.name])
    width = max(map(len, lines))
    makes = not pc.any(decisions["kept"]).as_py()
    dropped = "not kept as it is: this selection made pairs" if makes else "dropped"
    head = f"{uid} was {'kept' if decision['kept'] else dropped}"
    return "\n".join([head, *(f"  {name:<{width}}  {said}" for name, said in lines.items())])


def _score(column: pa.ChunkedArray, value: float) -> str:
    """A score and its percentile: the share of the pool that is lower, equal ones counting half."""
    lower, equal = (pc.sum(compare(column, value)).as_py() for compare in (pc.less, pc.equal))
    return f"{value:.4g}, percentile {100 * (lower + equal / 2) / len(column):.1f} of the pool"


def _quarantined(pair: dict[str, str | bytes | None]) -> str:
    caption = pair["caption"]
    text = caption.decode(errors="replace") if isinstance(caption, bytes) else caption
    return (
        f"{pair['uid']} was quarantined before anything was selected\n  image    {pair['image']}\n  caption  {text}\n"
        f"  stage    {pair['stage']}\n  error    {pair['error']}"
    )


def _files(folder: Path, cache: Path) -> tuple[Path, Path]:
    """Of the whole pool, which may be gone, and of the kept pairs."""
    pool = json.loads((folder / "provenance.json").read_text())["pool"]
    return cache / "pools" / pool / "pairs.arrow", folder / "pairs.arrow"


def _called(image: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """(n,) bool: is the picture called so, with its folders or without?"""
    return pc.or_(pc.equal(image, name), pc.ends_with(image, f"/{name}")).fill_null(False)


def _named(folder: Path, name: str, cache: Path) -> list[str]:
    """The uids of the pairs whose picture is called so, with its folders or without, or whose key is this."""
    for file in _files(folder, cache):
        if not file.is_file():
            continue
        table = Pairs.open(file).table
        found = _called(table["image"], name)
        if "key" in table.column_names:
            found = pc.or_(found, pc.equal(table["key"].cast(pa.large_string()), name).fill_null(False))
        return table["uid"].filter(found).to_pylist()
    return []


def _caption(folder: Path, uid: str, cache: Path) -> str:
    """From the pool, or from the kept pairs where the cache is gone; a refined one beside it."""
    whole, kept = _files(folder, cache)
    captions = []
    for file in (whole, kept):
        if file.is_file() and len(rows := _rows(table := Pairs.open(file).table, uid)):
            names = [name for name in (ORIGINAL, "caption") if name in table.column_names]
            captions += [table[name][int(rows[0])].as_py() for name in names]
    if not captions:
        return f"not at hand: no {whole}"
    return captions[0] if captions[0] == captions[-1] else f"{captions[0]} (refined: {captions[-1]})"


def _near(decisions: pa.Table, quarantine: pa.Table | None, uid: str) -> str:
    """The uids that share most with it, among those beside it in order and those with its first or last half."""
    tables = [decisions] if quarantine is None else [decisions, quarantine]
    known = pa.chunked_array([chunk.cast(pa.large_string()) for table in tables for chunk in table["uid"].chunks])
    known = known.drop_null()
    half = max(1, len(uid) // 2)
    before = pc.sum(pc.less(decisions["uid"], uid)).as_py() or 0  # decisions are sorted by uid
    like = pc.or_(pc.starts_with(known, uid[:half]), pc.ends_with(known, uid[-half:]))
    beside = decisions["uid"].slice(max(0, before - _NEAR), 2 * _NEAR).to_pylist()
    candidates = dict.fromkeys([*beside, *known.filter(like).slice(0, 10_000).to_pylist()])
    near = difflib.get_close_matches(uid, candidates, n=_NEAR, cutoff=0)
    return f"; near it are {', '.join(near)}" if near else ""
