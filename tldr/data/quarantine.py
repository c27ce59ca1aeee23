"""The quarantine: on disk, and to a person, how many pairs were refused for which reason, with an example of each."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tldr.atomic import atomic_path
from tldr.data.base import Reader


def reasons(quarantine: pa.Table, most: int = 8) -> list[str]:
    """A line for each of the most common reasons, with an example."""
    kind = pc.replace_substring_regex(quarantine["error"], ":.*", "")
    numbered = quarantine.append_column("kind", kind).append_column("row", pa.array(np.arange(len(kind))))
    groups = numbered.group_by(["stage", "kind"]).aggregate([([], "count_all"), ("row", "min")])
    groups = groups.sort_by([("count_all", "descending"), ("stage", "ascending"), ("kind", "ascending")])
    lines = []
    for group in groups.slice(0, most).to_pylist():
        row = group["row_min"]
        detail = quarantine["error"][row].as_py().removeprefix(group["kind"])
        example = f"uid {quarantine['uid'][row]}, image {quarantine['image'][row]}{detail}"
        lines.append(f"{group['count_all']:>8} x {group['stage']}: {group['kind']}, e.g. {example}")
    rest = groups.num_rows - most
    return [*lines, f"         and {rest} more kinds"] if rest > 0 else lines


def write_quarantine(quarantine: pa.Table, folder: Path, *, refused: bool) -> Path:
    """Write it as ``folder/quarantine.parquet``; but if the source is ``refused`` and the folder has the result of an
    earlier run, to which that file belongs, write another file."""
    other = folder / "quarantine-refused.parquet"
    file = other if refused and (folder / "provenance.json").is_file() else folder / "quarantine.parquet"
    with atomic_path(file) as temporary:
        pq.write_table(quarantine, temporary)
    if not refused:
        other.unlink(missing_ok=True)
    return file


def complaint(reader: Reader, quarantine: pa.Table, read: int, max_bad_fraction: float, listed: Path | None) -> str:
    """What to tell a person whose source is too bad: the counts, the reasons, and how to go on."""
    bad = quarantine.num_rows
    limit = f"more than max_bad_fraction={max_bad_fraction:g} allows" if bad < read else "nothing is left"
    lines = [f"{bad} of {read} pairs of {reader.name} at {reader.root} cannot be read, {bad / read:.2%}: {limit}"]
    lines += reasons(quarantine)
    if listed is not None:
        lines.append(f"All of them are listed in {listed}")
    if bad == read and pc.all(pc.equal(quarantine["error"], "missing file")).as_py():
        options = inspect.signature(type(reader)).parameters
        own = next((f"say where: data.{name}=..." for name in ("images", "videos", "root") if name in options), None)
        lines.append(f"If the pictures lie elsewhere, {own or f'put a link in place of {reader.root}'}")
    if bad < read:
        enough = math.ceil(1000 * bad / read) / 1000
        lines.append(f"Repair the source, or continue without these pairs: max_bad_fraction={enough:g}")
    return "\n".join(lines)
