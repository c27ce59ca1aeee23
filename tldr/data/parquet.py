"""Pairs in parquet files: a column of captions beside one of paths, of URLs, or of the pictures themselves, as bytes or
as the structs ``{bytes, path}`` that Hugging Face's datasets write.

A picture inside a file has the locator ``part.parquet#row=17`` (with ``,column=jpg`` where the column is not called
``image``). The column ``uid`` names the pairs where there is one, as in DataComp's metadata; if the pictures are inside
the file, provide one, because a derived uid depends on the row number. All other columns are kept, as Python values
(structs as JSON text), except those that hold bytes, such as further pictures.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tldr.data.base import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    Bad,
    Reader,
    Row,
    absolute,
    column,
    existing_folder,
    pairs,
    walk,
)

_ROWS = 4096


class Parquet(Reader):
    """The pairs of one or more files: a path, a folder, a pattern as ``part-*.parquet``, or several of these.

    ``images`` is the folder (or URL) that paths are relative to, by default the one that holds the files.
    """

    def __init__(
        self,
        annotations: str | Path | Sequence[str | Path],
        *,
        images: str | Path | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        uid_column: str | None = None,
        name: str = "parquet",
    ) -> None:
        given = [annotations] if isinstance(annotations, str | Path) else annotations
        if not given:
            raise ValueError("data.annotations=[] names no file")
        self.files = sorted({file for one in given for file in _files(one)})
        folder = os.path.commonpath([file.parent for file in self.files])
        self.root = existing_folder(folder if images is None else images, "data.images")
        self.image_column = image_column
        self.caption_column = caption_column
        self.uid_column = uid_column
        self.name = name

    def sources(self) -> Sequence[Path]:
        """The files of the pairs."""
        return self.files

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs of every file, row by row."""
        for file in self.files:
            try:
                yield from self._pairs(file)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} is not a complete parquet file: {error}; fix it or leave it out") from error

    def _pairs(self, path: Path) -> Iterator[Row | Bad]:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        try:
            image = column(schema.names, self.image_column, IMAGE_COLUMNS, "data.image_column")
            caption = column(schema.names, self.caption_column, CAPTION_COLUMNS, "data.caption_column")
            has_uid = self.uid_column is not None or "uid" in schema.names
            uid = column(schema.names, self.uid_column, ("uid",), "data.uid_column") if has_uid else None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        others = [name for name in schema.names if name not in (image, caption, uid)]
        others = [name for name in others if not _has_bytes(schema.field(name).type)]
        leaf, paths = _picture_columns(schema.field(image))
        wanted = [name for name in (caption, uid, paths, *others) if name is not None]
        container = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        suffix = "" if image == "image" else f",column={image}"
        row = 0
        for group in range(file.num_row_groups):
            inside = iter(_holds_bytes(file, group, leaf))
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=wanted):
                columns = {name: _values(batch[name]) for name in schema.names if name in batch.schema.names}
                for at in range(batch.num_rows):
                    where = f"{path.name} row {row}"
                    found = columns[image][at] if image in columns else None
                    if isinstance(found, dict):
                        found = found["path"]
                    if next(inside):
                        found = f"{container}#row={row}{suffix}"
                    extra = {name: columns[name][at] for name in others}
                    yield from pairs(
                        found, columns[caption][at], None if uid is None else columns[uid][at], extra, where
                    )
                    row += 1


def _files(given: str | Path) -> list[Path]:
    path = absolute(given)
    if Path(path).is_file():  # whatever signs its name has
        return [Path(path)]
    if Path(path).is_dir():
        found = [Path(folder, file) for folder, files in walk(path) for file in files if file.endswith(".parquet")]
    else:
        found = [file for file in map(Path, glob.glob(path, recursive=True)) if file.is_file()]
    if not found:
        raise ValueError(f"there is no parquet file at {path}; give the right path or pattern as data.annotations=...")
    return found


def _picture_columns(field: pa.Field) -> tuple[str | None, str | None]:
    """The columns, as parquet names them, of a picture's bytes and of its path, where there are such."""
    if pa.types.is_struct(field.type):
        parts = {part.name for part in field.type}
        return (f"{field.name}.bytes" if "bytes" in parts else None, f"{field.name}.path" if "path" in parts else None)
    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return field.name, None
    return None, field.name


def _has_bytes(of: pa.DataType) -> bool:
    """Are there bytes in its values, such as a picture's, or those of a list of pictures?"""
    if pa.types.is_nested(of):
        return any(_has_bytes(of.field(part).type) for part in range(of.num_fields))
    return pa.types.is_binary(of) or pa.types.is_large_binary(of)


def _holds_bytes(file: pq.ParquetFile, group: int, leaf: str | None) -> list[bool]:
    """(rows of the group,) whether each holds a picture: from the statistics, or else by reading the pictures."""
    meta = file.metadata.row_group(group)
    if leaf is None:
        return [False] * meta.num_rows
    chunks = [meta.column(number) for number in range(meta.num_columns)]
    statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf)
    nulls = statistics.null_count if statistics is not None and statistics.has_null_count else None
    if nulls in (0, meta.num_rows):
        return [nulls == 0] * meta.num_rows
    pictures = file.read_row_group(group, columns=[leaf]).column(0)
    pictures = pictures.flatten()[0] if pa.types.is_struct(pictures.type) else pictures
    return pictures.is_valid().to_pylist()


def _values(column: pa.Array) -> list[Any]:
    """The values of a column. In texts, bytes that are no UTF-8 are escaped: one row does not spoil the others."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
        return [text if text is None else text.decode("utf-8", "surrogateescape") for text in column.to_pylist()]
    if isinstance(column, pa.ListArray) and pa.types.is_string(column.type.value_type):
        lists = column.cast(pa.list_(pa.large_binary())).to_pylist()
        return [one and [text and text.decode("utf-8", "surrogateescape") for text in one] for one in lists]
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python's have microseconds
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column.to_pylist()
