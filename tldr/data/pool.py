"""From a reader to a canonical pool: judge every caption, look at every picture once, keep count of what is refused.

Nothing unreadable is replaced or passed over: it goes to the quarantine with uid, stage and error, and
``read = kept + quarantined``. The pool does not depend on the order in which the source lists its pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tldr.check import check_number
from tldr.data.base import Reader, Stage
from tldr.data.gather import EXTRA, FOUND, LOCATOR, gather
from tldr.data.images import ImageStore
from tldr.data.quarantine import complaint, reasons, write_quarantine
from tldr.data.verdict import verdicts
from tldr.pairs import DIGEST, REQUIRED, SECOND, SECOND_DIGEST, Pairs, derive_uid

Verify = Literal["decode", "exists", "none"]


@dataclass(frozen=True)
class Pool:
    """The pairs of a source that can be read, and the account of those that cannot.

    ``quarantine`` has the columns uid, image, caption (its bytes as found), stage and error. ``decoded`` counts the
    pictures that this run decoded rather than knew from its cache.
    """

    pairs: Pairs
    quarantine: pa.Table
    read: int
    decoded: int

    def summary(self) -> str:
        """What to tell a person: the counts and, where pairs are quarantined, why."""
        counts = f"{self.read} pairs read, {len(self.pairs)} in the pool, {self.quarantine.num_rows} quarantined"
        return "\n".join([counts, *reasons(self.quarantine)])


def read_pool(
    reader: Reader,
    *,
    verify: Verify = "decode",
    max_bad_fraction: float = 0.1,
    cache: str | Path | None = None,
    quarantine_to: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Pool:
    """Read a source, verify its pictures, and part what can be read from what cannot.

    ``verify="decode"`` decodes every distinct picture and gives the pairs the column ``image_digest`` of its bytes;
    ``"exists"`` asks only whether there is such a file. What was read and what was decoded is remembered in the folder
    ``cache``. Second pictures, the locators in a column ``image_2``, are verified as the first are.
    The quarantine is written into the folder ``quarantine_to``, whether or not the pool is good enough.

    Raises ValueError where more than ``max_bad_fraction`` of the pairs is bad.
    """
    if verify not in ("decode", "exists", "none"):
        raise ValueError(f"verify={verify!r}; it is one of decode, exists, none")
    check_number("max_bad_fraction", max_bad_fraction, "a share of the pairs read, from 0 to 1", low=0, high=1)
    reader.prepare()
    found = gather(reader, cache=cache, progress=progress)
    read = found.num_rows
    if not read:
        files = getattr(reader, "annotations", None) or reader.root
        where = ", ".join(map(str, files)) if isinstance(files, list) else files
        raise ValueError(f"there is not one pair in {reader.name}: {where}")
    found = _number_repeats(found)
    found, pictures = _with_locators(found)
    digests: dict[str, pa.ChunkedArray] = {}
    decoded = 0
    if verify != "none":
        good = pc.is_null(found["stage"])
        shown = [chunk for name in pictures.values() for chunk in found[name].filter(good).chunks]
        images = pc.unique(pa.chunked_array(shown, LOCATOR)).drop_null()
        store, decoding = ImageStore(reader.root), verify == "decode"
        verdict, decoded = verdicts(store, images, decoding=decoding, cache=cache, workers=workers, progress=progress)
        for digest, name in pictures.items():
            at = pc.index_in(found[name], images)
            errors = verdict["error"].take(at)
            found = _fail(found, "image", errors if name == "image" else _of_second(errors, found[name]))
            if decoding:
                digests[digest] = verdict["digest"].take(at)
    found = _refuse_second_uids(found)

    kept = pc.is_null(found["stage"])
    quarantine = found.filter(pc.invert(kept)).select(["uid", "image", "caption", "stage", "error"])
    quarantine = quarantine.sort_by([(name, "ascending") for name in ("stage", "image", "uid")])
    bad = quarantine.num_rows
    refused = bad == read or bad / read > max_bad_fraction
    listed = None if quarantine_to is None else write_quarantine(quarantine, Path(quarantine_to), refused=refused)
    if refused:
        raise ValueError(complaint(reader, quarantine, read, max_bad_fraction, listed))

    columns: dict[str, Any] = {name: found[name].filter(kept) for name in REQUIRED}
    columns["caption"] = columns["caption"].cast(pa.large_string())
    columns |= {name: digest.filter(kept) for name, digest in digests.items()}
    for column in found.column_names[len(FOUND) :]:
        name = column.removeprefix(EXTRA)
        if name in (DIGEST, SECOND_DIGEST):
            continue  # of an earlier pool: it is measured here, not believed
        while name in columns or (name != column.removeprefix(EXTRA) and EXTRA + name in found.column_names):
            name = f"source_{name}"
        columns[name] = found[column].filter(kept)
    provenance = {"data": reader.name, "read": read, "quarantined": bad}
    return Pool(Pairs.build(columns, root=reader.root, provenance=provenance), quarantine, read, decoded)


def _with_locators(found: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """The columns that hold locators, by the names of their digests' columns; a source may have second pictures."""
    name = EXTRA + SECOND
    if name not in found.column_names or not pa.types.is_large_string(found[name].type):
        return found, {DIGEST: "image"}
    return found, {DIGEST: "image", SECOND_DIGEST: name}


def _of_second(errors: pa.ChunkedArray, locators: pa.ChunkedArray) -> pa.ChunkedArray:
    """The errors of second pictures, with the locator, which the quarantine does not list: ``kind in image_2: ...``."""
    told = pc.replace_substring_regex(errors, "^([^:]*)", r"\1 in image_2")
    return pc.binary_join_element_wise(told, locators, pa.scalar(": ", LOCATOR))


def _equal(values: pa.ChunkedArray) -> Iterator[np.ndarray]:
    """The rows of each value that occurs several times."""
    if len(values) < 2:
        return
    order = pc.sort_indices(values)
    values = values.take(order)
    same = pc.equal(values.slice(1), values.slice(0, len(values) - 1)).to_numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        yield order.to_numpy()[start : stop + 1]


def _in_order_of_content(groups: Sequence[np.ndarray], found: pa.Table) -> Iterator[list[int]]:
    """Each group of rows in an order that does not depend on the source's: the good ones first, then by all they hold.

    The rows of all groups are taken at once: every take from a table of many chunks costs a copy of it.
    """
    if not groups:
        return
    content = found.take(np.concatenate(groups)).combine_chunks()
    start = 0
    for rows in groups:
        pairs = content.slice(start, len(rows)).to_pylist()
        start += len(rows)
        keys = [(one["stage"] is not None, json.dumps(one, sort_keys=True, default=repr)) for one in pairs]
        yield [int(rows[at]) for at in sorted(range(len(rows)), key=keys.__getitem__)]


def _number_repeats(found: pa.Table) -> pa.Table:
    """Tell apart the pairs that a source lists several times without naming them."""
    derived = np.flatnonzero(found["derived"].to_numpy())
    groups = [derived[group] for group in _equal(found["uid"].take(derived))]
    uids: dict[int, str] = {}
    for rows in _in_order_of_content(groups, found):
        for repeat, row in enumerate(rows):
            uids[row] = derive_uid(found["image"][row].as_py(), found["caption"][row].as_py(), repeat)
    return _replace(found, "uid", uids)


def _refuse_second_uids(found: pa.Table) -> pa.Table:
    """Quarantine all but one of the good pairs that share a uid."""
    good = np.flatnonzero(pc.is_null(found["stage"]).to_numpy())
    groups = [good[group] for group in _equal(found["uid"].take(good))]
    errors: dict[int, str] = {}
    for first, *others in _in_order_of_content(groups, found):
        errors.update(dict.fromkeys(others, f"repeated uid: it stands for a pair of {found['image'][first]} already"))
    return _replace(_replace(found, "stage", dict.fromkeys(errors, "read")), "error", errors)


def _replace(found: pa.Table, name: str, values: Mapping[int, str]) -> pa.Table:
    if not values:
        return found
    rows = np.array(sorted(values))
    mask = np.zeros(found.num_rows, dtype=bool)
    mask[rows] = True
    new = pa.array([values[row] for row in rows.tolist()], pa.large_string())
    column = pc.replace_with_mask(found[name].combine_chunks(), pa.array(mask), new)
    return found.set_column(found.column_names.index(name), name, column)


def _fail(found: pa.Table, stage: Stage, errors: pa.ChunkedArray) -> pa.Table:
    """Mark the rows that have an error and were good so far."""
    failed = pc.and_(pc.is_null(found["stage"]), pc.is_valid(errors))
    for name, new in (("stage", pa.scalar(stage, pa.large_string())), ("error", errors)):
        found = found.set_column(found.column_names.index(name), name, pc.if_else(failed, new, found[name]))
    return found
