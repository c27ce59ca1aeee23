"""All rows of a source as a table, each judged as far as is possible without its picture. Rows are gathered in Arrow
chunks of a fixed size, so that 40M pairs never exist as Python objects at once.

The rows of a source are cached in ``cache/sources`` for as long as its files keep their names, sizes and modification
times: terabytes of tars are read once, not by every command.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

import tldr
from tldr.atomic import atomic_path
from tldr.data.base import Bad, Reader, Row, Stage, raw
from tldr.pairs import derive_uid, widen

LOCATOR = pa.large_string()
EXTRA = "extra."  # keeps a source's own column names apart from these
FOUND = pa.schema(
    {
        "uid": pa.large_string(),
        "derived": pa.bool_(),  # the uid, because the source gave none
        "image": pa.large_string(),
        "caption": pa.large_binary(),  # as found: it need not be text
        "stage": pa.large_string(),  # null, like the error, while no fault is known
        "error": pa.large_string(),
    }
)
_CHUNK = 65_536
_FORMAT = 1  # of the cache: another number makes all that was cached invalid


def gather(reader: Reader, *, cache: str | Path | None = None, progress: bool = True) -> pa.Table:
    """Every row of a source, judged: the columns of `FOUND`, then the source's own; memory-mapped from ``cache`` where
    the reader tells which files it depends on (`Reader.sources`)."""
    before = None if cache is None else _stamp(reader)
    file = Path(cache or "", "sources", f"{before}.arrow")
    if before is None or not file.is_file():
        found = _gather(tqdm(reader.rows(), f"reading {reader.name}", unit=" pairs", disable=not progress))
        if before is None or _stamp(reader) != before:  # it has changed meanwhile
            return found
        with atomic_path(file) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            with pa.ipc.new_file(sink, found.schema) as writer:
                writer.write_table(found)
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _stamp(reader: Reader) -> str | None:
    """16 hex digits of all that a source's rows depend on; None where that is not known."""
    files = reader.sources()
    if files is None:
        return None
    stats = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.stat(),)]
    facts = json.dumps([_FORMAT, tldr.__version__, reader.made_with, stats])
    return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()


def _gather(rows: Iterable[Row | Bad]) -> pa.Table:
    """Every row of a source, judged: the columns of `FOUND`, then the source's own."""
    rows = iter(rows)
    chunks: list[pa.Table] = []
    while chunk := list(islice(rows, _CHUNK)):
        table = pa.Table.from_pylist([_judge(row) for row in chunk], schema=FOUND)
        extras = [row.extra if isinstance(row, Row) else {} for row in chunk]
        for name in dict.fromkeys(name for extra in extras for name in extra):
            table = table.append_column(EXTRA + _legible(name), _array([extra.get(name) for extra in extras]))
        chunks.append(table)
    names = sorted({name for chunk in chunks for name in chunk.column_names[len(FOUND) :]})
    found = pa.concat_tables([chunk.select(FOUND.names) for chunk in chunks]) if chunks else FOUND.empty_table()
    for name in names:
        parts = [chunk[name] if name in chunk.column_names else pa.nulls(chunk.num_rows) for chunk in chunks]
        found = found.append_column(name, _unite(parts))
    return widen(found)


def _judge(row: Row | Bad) -> dict[str, Any]:
    """A row as `FOUND` has it, with its fault if that shows without looking at the picture."""
    if isinstance(row, Bad):
        caption, fault = row.caption, (row.stage, row.error)
    else:
        caption, fault = raw(row.caption), _fault(row)
    image = _legible(row.image)
    stage, error = fault if fault else (None, None)
    return {
        "uid": _legible(row.uid) if row.uid else derive_uid(image, caption),
        "derived": not row.uid,
        "image": image,
        "caption": caption,
        "stage": stage,
        "error": error and " ".join(_legible(error).split()),
    }


def _fault(row: Row) -> tuple[Stage, str] | None:
    texts: tuple[tuple[Stage, str, str], ...] = (
        ("read", "image name", row.image),
        ("read", "uid", row.uid or ""),
        ("caption", "caption", row.caption),
    )
    for stage, what, text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            sign = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"lone surrogate U+{code:04X}"
            return stage, f"{what} is not UTF-8: {sign} after {error.start} characters, {row.where}"
    if not row.image:
        return "read", f"no image: {row.where}"
    if not row.caption.strip():
        return "caption", f"empty caption: {row.where}"
    return None


def _legible(text: str) -> str:
    """A text that a table can hold; the same text where it is sound."""
    return text.encode("utf-8", "backslashreplace").decode()


def _array(values: Sequence[Any]) -> pa.Array:
    """An extra column in the type of its values (bool, int, float, str, ..., lists of them), else as JSON text."""
    with suppress(pa.ArrowException, OverflowError, UnicodeEncodeError):
        array = pa.array(values)
        inner = array.type.value_type if pa.types.is_list(array.type) else array.type
        if not pa.types.is_nested(inner):
            return array
    return pa.array([_json(value) for value in values], pa.string())


def _unite(parts: Sequence[pa.Array | pa.ChunkedArray]) -> pa.ChunkedArray:
    tables = [pa.table({"": part}) for part in parts]
    try:
        return pa.concat_tables(tables, promote_options="permissive").column(0)
    except pa.ArrowException:  # no type holds the values of all chunks
        texts = [pa.array([_json(value) for value in part.to_pylist()], pa.string()) for part in parts]
        return pa.chunked_array(texts)


def _json(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value and _legible(value)
    return _legible(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))
