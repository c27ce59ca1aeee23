"""Pairs: image-text pairs as a frozen, memory-mapped Arrow table. A pool and a subset of it are the same type.

A pool is canonical: its rows are sorted by ``uid``, and a hash over their content names it. Only against that hash may
a row number stand for a pair. ``image`` is a locator, a string relative to ``root`` (`tldr.data.images` opens it):

    img/a.jpg                       a file
    shard.tar#bytes=512+1834        a range of bytes: offset + size
    part.parquet#row=17             a row of a parquet file, column ``image`` (another one: ``#row=17,column=jpg``)
    clip.mp4#frame=0/8              the middle frame of the first of 8 equal parts of a video, or of a folder of frames
    https://host/a.jpg              a URL that fsspec opens

A second picture, where a task has two, is a locator in the column ``image_2``.

Columns whose name begins with ``truth_`` hold the ground truth about planted noise: reports may read them, selectors
never see them (`Pairs.without_truth`).

Shapes: N pairs of the pool, n of the subset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tldr.atomic import atomic_path

REQUIRED = ("uid", "image", "caption")
DIGEST = "image_digest"  # of the picture's bytes: two pools with the same names and other pixels are two pools
SECOND, SECOND_DIGEST = "image_2", "image_2_digest"  # the same of the second picture, where a task has two
HASHED = (*REQUIRED, DIGEST, SECOND, SECOND_DIGEST)
TRUTH = "truth_"
_METADATA_KEY = b"tldr"
_HASH_ROWS = 65_536


def derive_uid(image: str, caption: str | bytes, repeat: int = 0) -> str:
    """The uid of a pair whose source gives none: a 128-bit hash in hex (like DataComp's uids) of locator, caption and,
    for a pair that the source lists several times, the number of equal ones before it."""
    text = caption if isinstance(caption, bytes) else caption.encode()
    parts = (image.encode("utf-8", "surrogateescape"), text, str(repeat).encode())
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def home_of(path: str | Path) -> Path:
    """The folder that `Pairs.open` reads: ``path``, or the parent of an ``.arrow`` file. Raises ValueError for another
    file, such as the annotations beside it."""
    if Path(path).is_file() and Path(path).suffix != ".arrow":
        raise ValueError(f"pairs={path}: give the folder that select.py has written, {Path(path).parent}")
    return Path(path).parent if Path(path).suffix == ".arrow" else Path(path)


def widen(table: pa.Table) -> pa.Table:
    """``table`` with 64-bit offsets in its texts, bytes and lists, also inside lists and structs: those of 40M pairs
    exceed 2 GiB, and Arrow's ``take`` joins the chunks of a column."""
    for at, column in enumerate(table.schema):
        wide = _wide(column.type)
        if wide != column.type:
            table = table.set_column(at, column.with_type(wide), table.column(at).cast(wide))
    return table


def _wide(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_wide(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_wide(kind.value_type)), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([part.with_type(_wide(part.type)) for part in kind])
    return kind


@dataclass(frozen=True)
class Pairs:
    """A canonical set of image-text pairs.

    Build one with `Pairs.build` (sorts, checks) or `Pairs.open`; the constructor trusts its table to be canonical.
    ``root`` is the folder (or URL) that locators are relative to; ``provenance`` says where the pairs come from.
    """

    table: pa.Table
    root: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls, columns: Mapping[str, Any] | pa.Table, *, root: str | Path, provenance: Mapping[str, Any] | None = None
    ) -> Pairs:
        """Canonicalise: require ``uid``, ``image`` and ``caption``, sort by uid.

        Raises ValueError naming the missing column, or a uid that stands for two pairs.
        """
        table = pa.table(dict(columns)) if isinstance(columns, Mapping) else columns
        missing = [name for name in REQUIRED if name not in table.column_names]
        if missing:
            raise ValueError(f"pairs need the columns {', '.join(REQUIRED)}; missing: {', '.join(missing)}")
        for name in HASHED:
            if name in table.column_names:
                at = table.column_names.index(name)
                table = table.set_column(at, name, table[name].cast(pa.large_string()))
        table = widen(table)
        for name in REQUIRED:
            if table[name].null_count:
                row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
                raise ValueError(f"row {row} has no {name}; a pair that cannot be read belongs in the quarantine")
        uid = table["uid"]
        order = pc.sort_indices(uid)
        table = table.take(order).combine_chunks()
        uid = table["uid"]
        if len(uid) > 1:
            equal = pc.equal(uid.slice(1), uid.slice(0, len(uid) - 1)).to_numpy()
            if equal.any():
                raise ValueError(f"uid {uid[int(np.flatnonzero(equal)[0])].as_py()!r} stands for more than one pair")
        return cls(table, str(root), dict(provenance or {}))

    @classmethod
    def open(cls, path: str | Path) -> Pairs:
        """Memory-map what `write` left: a ``pairs.arrow`` file, or a folder that holds one."""
        file = Path(path)
        if file.is_dir():
            file = file / "pairs.arrow"
        if not file.is_file():
            home = file.parent if file.suffix == ".arrow" else file
            raise ValueError(f"no pairs at {file}; `python select.py ... out={home}` writes them")
        try:
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} is not an Arrow file of pairs: {error}") from error
        stored = (table.schema.metadata or {}).get(_METADATA_KEY)
        if stored is None:
            raise ValueError(
                f"{file} was not written by tldr, it has no provenance; data=parquet reads what is written as parquet"
            )
        meta = json.loads(stored)
        pairs = cls(table.replace_schema_metadata(None), meta["root"], meta["provenance"])
        pairs.__dict__["hash"] = meta["hash"]
        return pairs

    def write(self, path: str | Path) -> Path:
        """Write ``pairs.arrow`` (into ``path`` if that is a folder), whole or not at all. Equal pairs, equal bytes."""
        file = Path(path)
        if file.suffix != ".arrow":
            file = file / "pairs.arrow"
        meta = {"root": self.root, "hash": self.hash, "provenance": dict(self.provenance)}
        table = self.table.replace_schema_metadata({_METADATA_KEY: json.dumps(meta, sort_keys=True).encode()})
        with atomic_path(file) as temporary, pa.OSFile(str(temporary), "wb") as sink:
            with pa.ipc.new_file(sink, table.schema) as writer:
                for start in range(0, len(table), _HASH_ROWS):  # copied: the bytes must not show how Arrow had cut them
                    part = table.slice(start, _HASH_ROWS)
                    writer.write_table(part.take(pa.array(np.arange(len(part)))).combine_chunks())
        return file

    @cached_property
    def hash(self) -> str:
        """Content hash over uid, image, caption, second image and, where known, the pictures' bytes (16 hex digits)."""
        digest = hashlib.blake2b(digest_size=8)
        names = [name for name in HASHED if name in self.table.column_names]
        for name in names:
            digest.update(name.encode())
            column = self.table[name].fill_null("") if self.table[name].null_count else self.table[name]
            for start in range(0, len(column), _HASH_ROWS):  # fixed steps: the hash must not depend on Arrow's chunks
                part = column.slice(start, _HASH_ROWS)
                digest.update(pc.binary_length(part.cast(pa.large_binary())).to_numpy().astype("<i8").tobytes())
                digest.update("".join(part.to_pylist()).encode())
        return digest.hexdigest()

    def digest(self, names: Iterable[str]) -> str:
        """A hash (16 hex digits) of each column in ``names`` that `hash` does not cover, such as labels; "" if none."""
        further = [name for name in names if name not in HASHED]
        values = [self.table[name].to_pylist() if name in self.table.column_names else [] for name in further]
        return "-".join(hashlib.blake2b(json.dumps(v, default=str).encode(), digest_size=8).hexdigest() for v in values)

    @property
    def seen(self) -> str:
        """The key under which signals of models are cached: the hash and, if the pictures' bytes were not read, their
        root, so that other pictures with the same names are not taken for them."""
        if DIGEST in self.table.column_names:
            return self.hash
        root = hashlib.blake2b(self.root.encode("utf-8", "surrogateescape"), digest_size=4)
        return f"{self.hash}-{root.hexdigest()}"

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def uids(self) -> pa.ChunkedArray:
        """(N,) sorted, each once."""
        return self.table["uid"]

    @property
    def images(self) -> pa.ChunkedArray:
        """(N,) locators, relative to ``root``."""
        return self.table["image"]

    @property
    def captions(self) -> pa.ChunkedArray:
        """(N,) as found, or as a refiner left them."""
        return self.table["caption"]

    @property
    def words(self) -> np.ndarray:
        """(N,) how many words, between white space, each caption has."""
        return pc.count_substring_regex(self.captions, pattern=r"\S+").to_numpy()

    def column(self, name: str) -> np.ndarray:
        """(N,) values of an extra column. Raises ValueError naming the columns there are."""
        if name not in self.table.column_names:
            raise ValueError(f"these pairs have no column {name!r}; they have {', '.join(self.table.column_names)}")
        return self.table[name].to_numpy()

    def refuse(self, strange: np.ndarray, fault: str) -> None:
        """Raises ValueError where a pair is ``strange`` (N,) bool: the ``fault``, how many have it, and their uids."""
        rows = np.flatnonzero(strange)
        if len(rows):
            uids = ", ".join(self.uids[int(row)].as_py() for row in rows[:3])
            raise ValueError(f"{fault} {len(rows)} pairs, such as {uids}")

    def refuse_infinite(self, name: str, finite: np.ndarray) -> None:
        """Raises ValueError with uids where ``name`` is not ``finite`` (N,)."""
        self.refuse(~finite, f"{name} is NaN or infinite for")

    def rows_of(self, uids: Sequence[str]) -> np.ndarray:
        """(len(uids),) the row of each uid. Raises ValueError naming a uid that is not here."""
        found = pc.index_in(pa.array(uids, pa.large_string()), self.uids)
        if found.null_count:
            stranger = uids[int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])]
            raise ValueError(f"uid {stranger!r} is not in these {len(self)} pairs")
        return found.to_numpy(zero_copy_only=False).astype(np.int64)

    def take(self, rows: np.ndarray, *, provenance: Mapping[str, Any] | None = None) -> Pairs:
        """The pairs at ``rows``, whatever their order, as canonical pairs; remembers this pool as the parent."""
        if np.asarray(rows).dtype == bool:
            raise ValueError("take wants row numbers, not a mask: np.flatnonzero(mask)")
        rows = np.unique(np.asarray(rows, dtype=np.int64))
        if len(rows) and (rows[0] < 0 or rows[-1] >= len(self)):
            raise ValueError(f"rows {rows[0]} to {rows[-1]} asked of {len(self)} pairs")
        given = dict(self.provenance if provenance is None else provenance)
        return Pairs(self.table.take(pa.array(rows)), self.root, {**given, "parent": self.hash})

    def with_column(self, name: str, values: Any) -> Pairs:
        """These pairs with a column added or replaced; ``uid`` and ``image`` stay what they are."""
        if name in ("uid", "image"):
            raise ValueError(f"{name} is a pair's identity and cannot be replaced")
        array = pa.array(values) if not isinstance(values, pa.Array | pa.ChunkedArray) else values
        array = array.cast(
            pa.large_string() if name in ("caption", DIGEST, SECOND, SECOND_DIGEST) else _wide(array.type)
        )
        names = self.table.column_names
        if name in names:
            return replace(self, table=self.table.set_column(names.index(name), name, array))
        return replace(self, table=self.table.append_column(name, array))

    def without_truth(self) -> Pairs:
        """These pairs as a selector may see them: without the ground-truth columns."""
        drop = [name for name in self.table.column_names if name.startswith(TRUTH)]
        pairs = replace(self, table=self.table.drop_columns(drop))
        pairs.__dict__["hash"] = self.hash  # the hash does not cover them
        return pairs

    def batches(self, size: int) -> Iterator[Pairs]:
        """Consecutive slices of at most ``size`` pairs, without copying."""
        for start in range(0, len(self), size):
            yield replace(self, table=self.table.slice(start, size))
