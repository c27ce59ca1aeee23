"""The NLVR corpus (Suhr et al., 2017; https://lil.nlp.cornell.edu/nlvr): sentences that are true or false of drawings
of three boxes, each drawn six times with its boxes in another order.

``root`` holds ``dev/dev.json`` (JSON lines) and ``dev/images/2/dev-1572-0-5.png``, or the same packed in ``dev.tar``,
which is read where it lies: its pictures are byte ranges. All six drawings are kept, as six pairs. The uid is the name
of the picture; the column ``identifier`` names the sentence, by which the corpus's own script measures consistency:
the first part of a record's identifier, ``dev-1572`` for 1572-0 to 1572-3.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tldr.data.base import Bad, Reader, Row, existing_folder, json_lines, parsed_lines, raw
from tldr.data.tars import members
from tldr.data.truth import truth

PERMUTATIONS = 6


class Nlvr(Reader):
    """The pairs of ``split``, the name of a folder or of a tar under ``root``: train, dev, test."""

    def __init__(self, root: str | Path, *, split: str = "dev", name: str = "nlvr") -> None:
        self.root = existing_folder(root, "data.root")
        self.split = split
        self.name = name
        self.folder, self.tar = Path(self.root) / split, Path(self.root) / f"{split}.tar"
        if not self.folder.is_dir() and not self.tar.is_file():
            raise ValueError(f"data.split={split}: there is neither a folder {split} nor a {split}.tar in {self.root}")

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs in the order of the file: of each sentence, the six drawings."""
        if self.folder.is_dir():
            file = self.folder / f"{self.split}.json"
            if not file.is_file():
                raise ValueError(f"there is no {file}; give the folder that holds {self.split}/ as data.root=...")
            yield from self._pairs(json_lines(file), None)
            return
        try:
            with self.tar.open("rb") as file:
                places = {member.name: member for member in members(file)}
                inner = places.get(f"{self.split}/{self.split}.json")
                if inner is None:
                    raise ValueError(f"{self.tar} holds no {self.split}/{self.split}.json")
                file.seek(inner.offset_data)
                lines = file.read(inner.size).decode("utf-8-sig", "surrogateescape").split("\n")
        except tarfile.TarError as error:
            raise ValueError(f"{self.tar} is not a complete tar: {error}; repair it or unpack it beside") from error
        yield from self._pairs(parsed_lines(lines), places)

    def _pairs(
        self, records: Iterator[tuple[int, Any]], places: dict[str, tarfile.TarInfo] | None
    ) -> Iterator[Row | Bad]:
        for line, record in records:
            where = f"{self.split}.json line {line}"
            record = record if isinstance(record, dict) else {}
            sentence, identifier = record.get("sentence"), record.get("identifier")
            said = raw(sentence) if isinstance(sentence, str) else b""
            label = truth(record.get("label"))
            if not isinstance(identifier, str):
                yield Bad("", said, "read", f"no identifier: {where}")
                continue
            for permutation in range(PERMUTATIONS):
                uid = f"{self.split}-{identifier}-{permutation}"
                image = f"{self.split}/images/{record.get('directory')}/{uid}.png"
                if not isinstance(sentence, str):
                    yield Bad(image, b"", "caption", f"no caption: {where}", uid)
                elif label is None:
                    yield Bad(image, said, "read", f"label is neither true nor false: {where}", uid)
                elif places is not None and image not in places:
                    yield Bad(image, said, "image", f"missing file: {self.tar.name} holds none of this name", uid)
                else:
                    if places is not None:
                        image = f"{self.tar.name}#bytes={places[image].offset_data}+{places[image].size}"
                    group = f"{self.split}-{identifier.split('-')[0]}"
                    yield Row(image, sentence, uid, {"label": label, "identifier": group}, where)
