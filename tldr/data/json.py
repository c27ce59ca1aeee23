"""BLIP-style annotations (https://github.com/salesforce/BLIP): ``[{"image": "a.jpg", "caption": "..."}, ...]``.

The keys may have other usual names (``url``, ``text``), as the first records of a file show. A caption may be a list:
as many pairs. A record's ``uid`` is kept (of several captions: ``uid#0``, ``uid#1``, ...) and every other key becomes a
column. The list is read record by record, however long it is; JSON Lines are read as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from tldr.data.base import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    Bad,
    Reader,
    Row,
    column,
    existing_file,
    existing_folder,
    pairs,
    raw,
)

_STEP = 1 << 20
_SAMPLE = 100


class Json(Reader):
    """The pairs of one file, or of several. ``images`` is the folder (or URL) of the pictures, by default the one that
    holds the files. Records without a uid have one of picture and caption, whichever file they are in."""

    def __init__(
        self,
        annotations: str | Path | Sequence[str | Path],
        *,
        images: str | Path | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        name: str = "json",
    ) -> None:
        several = [annotations] if isinstance(annotations, str | Path) else annotations
        if not several:
            raise ValueError("data.annotations=[] names no file")
        self.annotations = [existing_file(file, "data.annotations") for file in several]
        self.folder = os.path.commonpath([file.parent for file in self.annotations])
        self.root = existing_folder(self.folder if images is None else images, "data.images")
        self.image_column = image_column
        self.caption_column = caption_column
        self.name = name

    def sources(self) -> Sequence[Path]:
        """The files of the pairs."""
        return self.annotations

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs of every record, in the order of the files."""
        for file in self.annotations:
            yield from self._rows(file)

    def _rows(self, file: Path) -> Iterator[Row | Bad]:
        called, records = file.relative_to(self.folder).as_posix(), _elements(file)
        sample = list(islice(records, _SAMPLE))  # not the first alone: it may be the one that lacks something
        names = list(dict.fromkeys(key for record in sample if isinstance(record, dict) for key in record))
        image, caption = self.image_column or "image", self.caption_column or "caption"
        if names:
            try:
                image = column(names, self.image_column, IMAGE_COLUMNS, "data.image_column")
                caption = column(names, self.caption_column, CAPTION_COLUMNS, "data.caption_column")
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
        own = (image, caption, "uid")
        for number, record in enumerate(chain(sample, records)):
            where = f"{called} record {number}"
            if isinstance(record, dict):
                extra = {key: value for key, value in record.items() if key not in own}
                yield from pairs(record.get(image), record.get(caption), record.get("uid"), extra, where)
            else:
                text = record if isinstance(record, str) else json.dumps(record)
                yield Bad("", raw(text), "read", f"no object: {where}")


def _elements(path: Path) -> Iterator[Any]:
    """The elements of a JSON list, or of JSON Lines, one after the other."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        text = ""
        while not text.strip() and (more := file.read(_STEP)):
            text += more
        at = len(text) - len(text.lstrip())
        if text[at : at + 1] == "{":
            file.seek(0)
            yield from _lines(file, path)
            return
        if text[at : at + 1] != "[":
            raise ValueError(f"{path} is no JSON list of pairs; give the right file as data.annotations=...")
        at, before, number = at + 1, 0, 0
        while True:
            while text[at : at + 1] in (*" \t\r\n,",):
                at += 1
            if text[at : at + 1] == "]":
                if _goes_on(text[at + 1 :], file):
                    raise ValueError(
                        f"{path}: its list ends at character {before + at}, and more follows; give each list a file of "
                        "its own, data.annotations=[a.json,b.json]"
                    )
                return
            value, reason = None, "it breaks off"
            try:
                value, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                reason, end = error.msg, len(text)
            if end == len(text):  # nothing or half an element: it may go on
                more = file.read(max(_STEP, len(text)))
                if not more:
                    raise ValueError(
                        f"{path} is not a complete JSON list: {reason}, record {number}, character {before + at}"
                    )
                before, text, at = before + at, text[at:] + more, 0
                continue
            yield value
            at = end
            number += 1


def _goes_on(text: str, file: TextIO) -> bool:
    """Is there anything but white space, in ``text`` or in what is left of the file?"""
    while not text.strip():
        if not (text := file.read(_STEP)):
            return False
    return True


def _lines(file: TextIO, path: Path) -> Iterator[Any]:
    """The values of JSON Lines; a line that is no JSON comes as its text."""
    told = path.suffix in (".jsonl", ".ndjson")
    for line in file:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = line
        if not told and (not isinstance(value, dict) or {"images", "annotations"} & value.keys()):
            raise ValueError(
                f"{path} is one JSON object, no list of pairs; COCO's and Karpathy's are read by data=coco"
            )
        told = True
        yield value
