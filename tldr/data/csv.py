"""Captions in a delimited file: CSV, or TSV as Conceptual Captions has it (``caption<TAB>url``, no header;
https://github.com/google-research-datasets/conceptual-captions).

Cells may be quoted as in RFC 4180, delimiters and line ends included; a quote that opens no well-formed cell is an
ordinary character. The other columns are kept as text: a delimited file has no types.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from tldr.check import check_flag, check_number
from tldr.data.base import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    PICTURES,
    Bad,
    Reader,
    Row,
    column,
    existing_file,
    existing_folder,
    raw,
    records,
)

_DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_SAMPLE = 100


class Csv(Reader):
    """The pairs of one delimited file. ``images`` is the folder (or URL) of the pictures, by default the file's own.

    A column is given by its name or, where there is no header, by its number from 0. What is not given is detected: the
    delimiter (or give comma, tab, semicolon, pipe or a character) from the file's name and first line; the header, and
    with it the columns, by the usual names; without a header, the image column of two as the one that looks like file
    names or URLs. ``quotes=False`` takes every quote as an ordinary character.
    """

    def __init__(
        self,
        annotations: str | Path,
        *,
        images: str | Path | None = None,
        image_column: str | int | None = None,
        caption_column: str | int | None = None,
        uid_column: str | int | None = None,
        delimiter: str = "auto",
        header: bool | Literal["auto"] = "auto",
        quotes: bool = True,
        name: str = "csv",
    ) -> None:
        self.annotations = existing_file(annotations, "data.annotations")
        self.root = existing_folder(self.annotations.parent if images is None else images, "data.images")
        self.image_column = image_column
        self.caption_column = caption_column
        self.uid_column = uid_column
        self.delimiter = _DELIMITERS.get(delimiter, delimiter)
        if len(self.delimiter) != 1 and delimiter != "auto":
            raise ValueError(
                f"data.delimiter={delimiter!r}; it is auto, a character, or one of {', '.join(_DELIMITERS)}"
            )
        check_flag("data", quotes=quotes, **({} if header == "auto" else {"header": header}))
        self.header = header
        self.quotes = quotes
        self.name = name

    def sources(self) -> Sequence[Path]:
        """The file of the pairs."""
        return [self.annotations]

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs in the order of the file."""
        delimiter = self._find_delimiter() if self.delimiter == "auto" else self.delimiter
        sample = list(islice(records(self.annotations, delimiter, quotes=self.quotes), _SAMPLE))
        if not sample:
            return
        names = self._find_header(sample[0][1])
        titled = names is not None
        if names is None:
            width = Counter(len(cells) for _, cells in sample).most_common(1)[0][0]
            image, caption = self._find_columns([cells for _, cells in sample if len(cells) == width], width)
            names, uid = [f"column_{number}" for number in range(width)], None
            if self.uid_column is not None:
                where = f"from 0 to {width - 1}: {self.annotations} has {width} columns and no header"
                check_number("data.uid_column", self.uid_column, where, low=0, high=width - 1, whole=True)
                uid = int(self.uid_column)
        else:
            image = _find(names, self.image_column, IMAGE_COLUMNS, "data.image_column")
            caption = _find(names, self.caption_column, CAPTION_COLUMNS, "data.caption_column")
            has_uid = self.uid_column is not None or "uid" in names
            uid = _find(names, self.uid_column, ("uid",), "data.uid_column") if has_uid else None
        others = [number for number in range(len(names)) if number not in (image, caption, uid)]

        def whole(cells: list[str]) -> bool:
            return len(cells) == len(names) and _is_picture(cells[image])

        lines = records(self.annotations, delimiter, quotes=self.quotes, whole=whole)
        for line, cells in islice(lines, int(titled), None):
            where = f"{self.annotations.name} line {line}"
            if len(cells) != len(names):
                known = cells[image] if image < len(cells) else ""
                reason = f"not {len(names)} columns: {len(cells)} in {where}"
                yield Bad(known, raw(delimiter.join(cells)), "read", reason)
            else:
                extra = {names[number]: cells[number] for number in others}
                yield Row(cells[image], cells[caption], None if uid is None else cells[uid], extra, where)

    def _find_delimiter(self) -> str:
        if self.annotations.suffix.lower() in (".tsv", ".tab"):
            return "\t"
        with self.annotations.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            line = file.readline()
        usual = (",", "\t", ";", "|") if self.annotations.suffix.lower() == ".csv" else ("\t", ",", ";", "|")
        for delimiter in usual:
            if _is_header([cell.strip('"\r\n') for cell in line.split(delimiter)]):
                return delimiter
        return next((delimiter for delimiter in usual if delimiter in line), ",")

    def _find_header(self, cells: list[str]) -> list[str] | None:
        """The names of the columns, if the first record has them."""
        named = any(isinstance(one, str) for one in (self.image_column, self.caption_column, self.uid_column))
        if self.header is True or (self.header == "auto" and (named or _is_header(cells))):
            names = [cell.strip() for cell in cells]
            if twice := [name for name, number in Counter(names).items() if number > 1]:
                raise ValueError(f"{self.annotations} has two columns that are called {twice[0]!r}: rename one")
            return names
        return None

    def _find_columns(self, sample: list[list[str]], width: int) -> tuple[int, int]:
        """The columns of image and caption where there is no header: as given or, of two, by what looks like files."""
        given = {"image": self.image_column, "caption": self.caption_column}
        if width == 2 and given == {"image": None, "caption": None}:
            first, second = (sum(map(_is_picture, cells)) for cells in zip(*sample, strict=True))
            if first != second:
                given["image"] = int(second > first)
        for one, other in (("image", "caption"), ("caption", "image")):
            if width == 2 and given[one] is None and given[other] in (0, 1):
                given[one] = 1 - int(given[other] or 0)
        found = []
        for what, number in given.items():
            if not isinstance(number, int) or not 0 <= number < width:
                reason = f"{self.annotations} has {width} columns and no header"
                raise ValueError(f"{reason}: say which is the {what}, data.{what}_column=0 to {width - 1}")
            found.append(number)
        return found[0], found[1]


def _find(names: list[str], given: str | int | None, usual: Sequence[str], key: str) -> int:
    name = names[given] if isinstance(given, int) and given < len(names) else given
    return names.index(column(names, name if name is None else str(name), usual, key))


def _is_header(cells: list[str]) -> bool:
    return any(cell.strip().lower() in (*IMAGE_COLUMNS, *CAPTION_COLUMNS) for cell in cells)


def _is_picture(cell: str) -> bool:
    return cell.strip().lower().endswith(PICTURES) or re.fullmatch(r"\w+://\S+", cell.strip()) is not None
