"""Flickr8k (Hodosh et al., 2013): photographs with five captions each, as in Kaggle's copy: ``captions.txt`` with the
columns image and caption, and the folder ``Images`` (or ``images``).

The copy lists no splits, so images are split by a hash of their names, whatever else the folder has: below 0.1 (one
in ten) is ``split=test``, below 0.2 ``split=dev``, the rest ``split=train``. All captions of an image are in one split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tldr.data.base import Bad, Reader, Row, existing_file, existing_folder, raw, records

SPLITS = {"test": 0.1, "dev": 0.2, "train": 1.0}  # up to what a name hashes


class Flickr8k(Reader):
    """The pairs of the folder ``root``: of all images, or of those of ``train``, ``dev`` or ``test``."""

    def __init__(self, root: str | Path, *, split: str = "all", name: str = "flickr8k") -> None:
        if split not in ("all", *SPLITS):
            raise ValueError(f"data.split={split!r}; flickr8k has all, train, dev, test")
        self.root = existing_folder(root, "data.root")
        self.captions = existing_file(Path(self.root) / "captions.txt", "data.root")
        self.split = split
        self.name = name

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs of the split, in the order of the file."""
        folder = next((name for name in ("images", "Images") if (Path(self.root) / name).is_dir()), None)
        if folder is None:
            raise ValueError(f"there is no folder images or Images in {self.root}; give the right one as data.root=...")
        for line, cells in records(self.captions, ","):
            where = f"captions.txt line {line}"
            name = cells[0]
            if (line == 1 and cells == ["image", "caption"]) or self.split not in ("all", _split(name)):
                continue
            image = f"{folder}/{name}" if name else ""
            if len(cells) == 2:
                yield Row(image, cells[1], where=where)
            else:
                yield Bad(image, raw(",".join(cells[1:])), "read", f"not 2 columns: {len(cells)} in {where}")


def _split(name: str) -> str:
    """Where an image is held, by its name alone."""
    digest = hashlib.blake2b(raw(name), digest_size=8).digest()
    return next(split for split, end in SPLITS.items() if int.from_bytes(digest, "big") < end * 2**64)
