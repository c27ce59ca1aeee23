"""Tar shards of webdataset (https://github.com/webdataset/webdataset), as img2dataset writes them of CC3M, CC12M, LAION
and DataComp, and as ``exports=[webdataset]`` does.

Files that follow each other and share a key, their name up to its first dot, are a sample: ``000000012.jpg`` (or
another picture), ``.txt``, ``.json``. Its caption is the ``.txt``, else ``caption`` of the ``.json``; its uid is
``uid`` of the ``.json``, where there is one; every other value there becomes a column. Nothing is unpacked: a picture
is a range of bytes of its shard, ``00000.tar#bytes=512+1834``. What img2dataset leaves beside them is not looked at.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tldr.check import check_flag
from tldr.data.base import PICTURES, Bad, Reader, Row, existing_folder, pairs, walk
from tldr.data.tars import COMPRESSED, members, refusal

BROKEN = ("stop", "quarantine")
_TARS = (".tar", *COMPRESSED)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Webdataset(Reader):
    """The samples of the shards under ``root``, nested or not, in the order of their names.

    ``shards``, a pattern as ``cc3m/*.tar`` or ``{00000..00331}.tar`` or several of these, takes some of them only.
    ``caption_column`` is the key of the ``.json`` to take captions from, whether or not there is a ``.txt``. With
    ``lines``, each line of a ``.txt`` that is not blank is a caption of its own (CLIP benchmark's COCO and Flickr30k).
    How much a truncated shard has lost cannot be known: with ``broken="stop"`` all shards are read, and then truncated
    ones are refused; with ``broken="quarantine"`` only the sample at which a shard breaks off counts as a bad pair.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        shards: str | Sequence[str] | None = None,
        caption_column: str | None = None,
        broken: str = "stop",
        lines: bool = False,
        name: str = "webdataset",
    ) -> None:
        if broken not in BROKEN:
            raise ValueError(f"data.broken={broken!r}; choose from {', '.join(BROKEN)}")
        self.root, self.broken = existing_folder(root, "data.root"), broken
        self.shards = _find(Path(self.root), shards)
        check_flag("data", lines=lines)
        self.caption_column, self.lines = caption_column, lines
        self.name = name

    def sources(self) -> Sequence[Path]:
        """The shards of the pairs."""
        return self.shards

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs of every shard. Raises ValueError naming those that break off."""
        halves: list[str] = []
        for shard in self.shards:
            for sample in _samples(shard, shard.relative_to(self.root).as_posix()):
                if sample.breaks_off:
                    halves.append(f"{sample.shard} {sample.breaks_off}")
                yield from self._pairs(sample)
        if halves and self.broken == "stop":
            told = "; ".join(halves[:5]) + (f"; and {len(halves) - 5} more" if len(halves) > 5 else "")
            raise ValueError(
                f"{len(halves)} of the {len(self.shards)} shards in {self.root} break off, and what follows in them is "
                f"lost: {told}. Fetch them again, leave them out by data.shards=..., or do without what is lost: "
                "data.broken=quarantine"
            )

    def _pairs(self, sample: _Sample) -> Iterator[Row | Bad]:
        fault, text, where = sample.fault, sample.texts.get("txt"), f"{sample.shard} sample {sample.key}"
        plain = [image for suffix, image in sample.pictures if f".{suffix}" in PICTURES]  # jpg, not mask.png beside it
        images = plain or [image for _, image in sample.pictures]
        image = images[0] if images else None
        record: Any = None
        try:
            record = json.loads(sample.texts.get("json", b"{}"))
        except (ValueError, RecursionError):
            fault = fault or f"json cannot be parsed: {where}"
        record = record if isinstance(record, dict) else {}  # a list, say: other people's
        uid, status = record.get("uid"), record.get("status", "success")
        if not fault and len(images) > 1:
            fault = f"several images: {', '.join(suffix for suffix, _ in sample.pictures)} in {where}"
        if not fault and image is None and status != "success":
            fault = f"not downloaded: {status}, {record.get('error_message')}, {where}"
        if fault:
            yield Bad(image or "", text or b"", "read", fault, None if uid is None else str(uid))
            return
        key = self.caption_column or "caption"
        caption = record.get(key)
        if text is not None and self.caption_column is None:
            caption = text.decode("utf-8", "surrogateescape")
            if "json" not in sample.texts:  # packed by hand: as data=folder has it, for editors end the line
                caption = caption.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
            if self.lines:
                caption = [line.removesuffix("\r") for line in caption.split("\n") if line.strip()] or ""
        extra = {name: value for name, value in record.items() if name not in (key, "uid")}
        yield from pairs(image, caption, uid, extra, where)


@dataclass
class _Sample:
    """(suffix, locator) of each picture, the bytes of txt and json, and why it cannot be read, where it cannot."""

    shard: str
    key: str
    pictures: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    fault: str | None = None
    breaks_off: str | None = None  # where, if its shard does


def _samples(path: Path, shard: str) -> Iterator[_Sample]:
    """The samples of a shard, one whenever the key changes, as in webdataset."""
    sample, suffixes = None, set()
    try:
        with path.open("rb") as file:
            for member in members(file):
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                if not stem or not suffix:
                    continue
                key, suffix = member.name.removesuffix(f".{suffix}"), suffix.lower()
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample, suffixes = _Sample(shard, key), set()
                if suffix in suffixes:
                    sample.fault = f"repeated file: a second {suffix} in {shard} sample {key}"
                suffixes.add(suffix)
                if suffix in ("txt", "json"):
                    file.seek(member.offset_data)
                    sample.texts[suffix] = file.read(member.size)
                elif f".{suffix}".endswith(PICTURES):
                    sample.pictures.append((suffix, f"{shard}#bytes={member.offset_data}+{member.size}"))
    except tarfile.TarError as error:
        sample = sample or _Sample(shard, "")
        place = f"at sample {sample.key}" if sample.key else "before its first sample"
        sample.breaks_off = f"{place}: {error}"
        sample.fault = f"broken tar: {shard} breaks off {place}: {error}; all that follows is lost, fetch it again"
    if sample is not None:
        yield sample


def _find(root: Path, given: str | Sequence[str] | None) -> list[Path]:
    """The shards, sorted. Raises ValueError naming a pattern without any, or a shard that is compressed."""
    found: set[Path] = set()
    if given is None:
        found = {Path(path, file) for path, files in walk(root) for file in files if file.endswith(_TARS)}
        if not found:
            raise ValueError(f"there is no tar in {root}; give the right data.root=... or data.shards=...")
    for pattern in [] if given is None else [given] if isinstance(given, str) else given:
        for one in _expand(pattern):
            one = os.path.relpath(one, root) if os.path.isabs(one) else one
            if not one or one.startswith(".."):
                raise ValueError(f"data.shards={pattern!r}: a pattern of files in data.root={root}")
            paths = [path for path in root.glob(one) if path.name.endswith(_TARS) and path.is_file()]
            paths = [path for path in paths if not any(part[0] == "." for part in path.relative_to(root).parts)]
            if not paths:
                raise ValueError(f"there is no {one} in {root}; give the right data.root=... or data.shards=...")
            found.update(paths)
    for path in sorted(found):
        if path.name.endswith(COMPRESSED):
            raise ValueError(refusal(str(path)))
    return sorted(found)


def _expand(pattern: str) -> list[str]:
    """A pattern for each number of its first range, ``{000..123}``, and of those behind it."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    before, behind = pattern[: match.start()], _expand(pattern[match.end() :])
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [f"{before}{number:0{len(match[1])}d}{rest}" for number in numbers for rest in behind]
