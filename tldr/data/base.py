"""Readers: each yields the image-text pairs of a source as found, row by row, without decoding or judging them.

A reader yields a `Row` for every pair it can make out and a `Bad` for every one it cannot. Captions are passed on as
they are, bytes that are not UTF-8 as surrogate escapes; `tldr.data.pool` decides what is kept. To add a source, write
one final class beside the others and a YAML of its name in ``conf/data/``.
"""

from __future__ import annotations

import csv
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

# What columns are called in the files people have, most telling first (compared in lower case).
IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "img", "image_path", "filepath", "file_path", "image_file", "file_name")
IMAGE_COLUMNS += ("filename", "image_name", "path", "file", "image_url", "url")
CAPTION_COLUMNS = ("caption", "text", "txt", "title", "captions", "comment", "sentence", "description", "alt")

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif")  # endings of file names

_LONGEST_CELL = 1 << 20
_OTHER = {  # what no text in UTF-8 begins with
    b"\x1f\x8b": "compressed: gunzip it",
    b"\xff\xfe": "in UTF-16: convert it by `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "in UTF-16: convert it by `iconv -f UTF-16 -t UTF-8`",
}

Stage = Literal["read", "caption", "image"]


@dataclass(frozen=True, slots=True)
class Row:
    """A pair as its source has it. ``where`` tells a person where it stands, e.g. ``captions.txt line 17``."""

    image: str
    caption: str
    uid: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, slots=True)
class Bad:
    """A pair that its source does not give whole: what is known of it, the stage it failed at, and why.

    ``error`` is one line, ``kind`` or ``kind: detail``; reports count the kinds.
    """

    image: str
    caption: bytes
    stage: Stage
    error: str
    uid: str | None = None


def pairs(image: Any, captions: Any, uid: Any, extra: Mapping[str, Any], where: str) -> Iterator[Row | Bad]:
    """The pairs of one record: one for every caption of a list, ``uid#0``, ``uid#1``, ... if there are several.

    What is missing or no text makes a `Bad` one.
    """
    several = captions if isinstance(captions, list) else [captions]
    for number, caption in enumerate(several or [None]):
        name = None if uid is None else str(uid) if len(several) < 2 else f"{uid}#{number}"
        known = image if isinstance(image, str) else ""
        if isinstance(image, str) and isinstance(caption, str):
            yield Row(image, caption, name, extra, where)
        elif isinstance(caption, str):
            yield Bad(known, raw(caption), "read", f"no image: {where}", name)
        elif caption is None:
            yield Bad(known, b"", "caption", f"no caption: {where}", name)
        else:
            yield Bad(known, raw(json.dumps(caption, default=str)), "caption", f"caption is no text: {where}", name)


class Reader(ABC):
    """A source of pairs. ``name`` is for folders of results; ``root``, absolute, is what locators are relative to."""

    name: str
    root: str

    def prepare(self) -> None:  # noqa: B027  (most have nothing to make)
        """Render or download the data, if they are not there yet."""

    @property
    def made_with(self) -> str:
        """The class and all attributes, which must be plain values and paths: readers made alike read the same rows
        from the same files."""
        return repr((type(self).__qualname__, sorted(vars(self).items())))

    def sources(self) -> Sequence[Path] | None:
        """The files that `rows` depends on, besides what the reader is `made_with`: the rows are cached until any of
        these changes. None if unknown or not worth it: always read anew."""
        return None

    def for_task(self, task: str) -> Reader:
        """The reader of the data that ``task`` (pairs, nlvr2, vqa, classes, video) is evaluated on: this one, unless a
        subclass has another."""
        return self

    @abstractmethod
    def rows(self) -> Iterator[Row | Bad]:
        """Every pair of the source once, streamed."""


def raw(text: str) -> bytes:
    """The bytes that a source had for a text: escaped ones restored, lone surrogates of JSON as they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def absolute(path: str | Path) -> str:
    """``path`` made absolute, so that it stays valid when a subset is opened from another folder. URLs are left alone,
    and links are not resolved (Hugging Face's cache has them): files beside a link need not be beside its target."""
    if "://" in str(path):
        return str(path)
    found = Path(path).expanduser().absolute()
    return str(found.resolve() if ".." in found.parts else found)


def existing_file(path: str | Path, key: str) -> Path:
    """``path``, absolute. Raises ValueError naming the override ``key`` if there is no such file."""
    file = Path(absolute(path))
    if not file.is_file():
        found = "it is a folder" if file.is_dir() else "there is no such file"
        raise ValueError(f"cannot read the pairs of {file}: {found}; give the right one as {key}=...")
    with file.open("rb") as opened:
        begins = opened.read(2)
    if how := _OTHER.get(begins):
        raise ValueError(f"{file} is {how}, and give {key}=...")
    return file


def existing_folder(path: str | Path, key: str) -> str:
    """``path``, absolute. Raises ValueError naming the override ``key`` if there is no such folder."""
    folder = absolute(path)
    if "://" not in folder and not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}; give the right one as {key}=...")
    return folder


def column(names: Sequence[str], given: str | None, usual: Sequence[str], key: str) -> str:
    """The column ``given``, else the first of the ``usual`` names there is. Raises ValueError naming the override."""
    if given is not None and given not in names:
        raise ValueError(f"{key}={given}: there is no such column among {', '.join(names)}")
    if given is not None:
        return given
    found = {name.strip().lower(): name for name in reversed(names)}
    for name in usual:
        if name in found:
            return found[name]
    raise ValueError(f"which of the columns {', '.join(names)} is it? Say so with {key}=...")


def walk(root: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below ``root`` and the names of its files, both in order and without those that begin with a dot.
    Links to folders are followed, each folder once. Raises ValueError naming one that cannot be looked into."""
    seen: set[tuple[int, int]] = set()
    for path, folders, files in os.walk(root, onerror=_stop, followlinks=True):
        stat = os.stat(path)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        yield path, sorted(file for file in files if not file.startswith("."))


def _stop(error: OSError) -> None:
    raise ValueError(f"cannot look into {error.filename}: {error.strerror}") from error


def records(
    path: Path, delimiter: str, *, quotes: bool = True, whole: Callable[[list[str]], bool] = lambda _: False
) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every record of a delimited file, its cells quoted as in RFC 4180.

    A quote that does not open a well-formed cell is an ordinary character; without ``quotes``, all quotes are. So is
    one that opens a cell of several lines, each of which is a ``whole`` record by itself when split at delimiters: that
    quote was never closed, and what looks like its end is another quote. Only ``\\n`` and ``\\r\\n`` end a line:
    captions may contain any other kind of line end.
    """

    def split(line: str) -> list[str]:
        return line.removesuffix("\n").removesuffix("\r").split(delimiter)

    csv.field_size_limit(_LONGEST_CELL)  # also how far to look for the other end of a quote
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        lines = _Lines(file)
        number = 1
        for line in lines:
            cells = split(line)
            if quotes and '"' in line:
                try:
                    quoted = next(csv.reader(chain([line], lines), delimiter=delimiter, strict=True))
                    if len(lines.taken) > 1 and all(whole(split(one)) for one in lines.taken):
                        lines.give_back()
                    else:
                        cells = quoted
                except csv.Error:
                    lines.give_back()
            if cells not in ([], [""]):
                yield number, cells
            number += len(lines.taken)
            lines.taken.clear()


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of every line of JSON that is not blank; None of one that is no JSON."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        yield from parsed_lines(file)


def parsed_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """`json_lines` of lines that are at hand."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError:
                yield number, None


class _Lines:
    """The lines of a file, of which those taken in vain can be given back."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.taken: list[str] = []
        self.returned: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.returned.popleft() if self.returned else self.file.readline()
        if not line:
            raise StopIteration
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """All that were taken but the first."""
        self.returned.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]
