"""A folder, nested or not, with a ``.txt`` beside each picture of the same name (img2dataset, kohya's trainers).

The whole ``.txt`` is one caption, including its line ends except one at the very end (img2dataset writes none, editors
do). ``lines=True`` takes each line that is not blank as a caption of its own. If a picture also has a ``.json`` with a
``uid`` (DataComp's), that is the pair's uid; img2dataset's ``key`` cannot be, as every download counts from 0. Names
that begin with a dot are ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tldr.check import check_flag
from tldr.data.base import PICTURES, Bad, Reader, Row, existing_folder, walk


class Folder(Reader):
    """The pictures under ``root`` with their captions, in the order of their names."""

    def __init__(self, root: str | Path, *, lines: bool = False, name: str = "folder") -> None:
        self.root = existing_folder(root, "data.root")
        check_flag("data", lines=lines)
        self.lines = lines
        self.name = name

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs; a picture without text and a text without picture are bad ones. Raises ValueError where there are
        only tars."""
        tar, other = None, False
        for path, seen in walk(self.root):
            texts: dict[str, str] = {}
            for file in (file for file in seen if file.lower().endswith(".txt")):
                if (first := texts.setdefault(file[:-4], file)) != file:
                    second = Path(path, file)
                    where = second.relative_to(self.root).as_posix()
                    yield Bad("", _read(second), "read", f"{first} has the caption that {where} might have")
            sidecars = {file.removesuffix(".json") for file in seen if file.endswith(".json")}
            pictures = [(os.path.splitext(file)[0], file) for file in seen if file.lower().endswith(PICTURES)]
            tar = tar or next((Path(path, file) for file in seen if file.endswith(".tar")), None)
            other = other or bool(pictures or texts)
            for stem, file in pictures:
                image = Path(path, file).relative_to(self.root).as_posix()
                if stem in texts:
                    uid = _uid(Path(path, f"{stem}.json")) if stem in sidecars else None
                    yield from self._pairs(image, Path(path, texts[stem]), uid)
                else:
                    yield Bad(image, b"", "caption", f"no caption: there is no {stem}.txt beside it")
            for stem in sorted(set(texts).difference(stem for stem, _ in pictures)):
                text = Path(path, texts[stem])
                where = text.relative_to(self.root).as_posix()
                yield Bad("", _read(text), "read", f"no image: there is none of this name beside {where}")
        if tar and not other:
            raise ValueError(
                f"there are no pictures in {self.root} but tars, as {tar.name}: read them by data=webdataset"
            )

    def _pairs(self, image: str, file: Path, uid: str | None) -> Iterator[Row | Bad]:
        where = file.relative_to(self.root).as_posix()
        try:
            text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
        except OSError as error:
            yield Bad(image, b"", "caption", f"caption cannot be read: {error.strerror}, {where}", uid)
            return
        if not self.lines:
            yield Row(image, text.removesuffix("\n").removesuffix("\r"), uid, where=where)
            return
        lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        for number, line in lines or [(1, "")]:
            yield Row(image, line, f"{uid}#{number}" if uid and len(lines) > 1 else uid, where=f"{where} line {number}")


def _uid(sidecar: Path) -> str | None:
    """The uid in img2dataset's record of a picture. Other people's ``.json`` files have none."""
    try:
        record = json.loads(sidecar.read_bytes())
    except (ValueError, OSError):
        return None
    found = record.get("uid") if isinstance(record, dict) else None
    return None if found is None else str(found)


def _read(file: Path) -> bytes:
    """What a text holds; nothing where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
