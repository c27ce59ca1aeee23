"""Where CIFAR-10 (Krizhevsky, 2009) lies, and its pictures: ``train.parquet`` and ``test.parquet`` with the columns
uid, image (the bytes of a file), label and class.

They are looked for in the folder given, else in ``$TLDR_TEST_DATA/cifar10``, else in ``shared/data/cifar10`` beside the
project, else in the folder of downloads; where that is empty, torchvision downloads them and they are written so.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from tldr.atomic import atomic_path
from tldr.data.base import Row, absolute

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # 0 to 9
FILES = ("train.parquet", "test.parquet")
_PROJECT = Path(__file__).parents[2]


def cifar_folder(source: str | Path | None, downloads: str | Path) -> Path:
    """The folder that has the two files; ``downloads`` if none has, even if they are yet to be downloaded there.

    Raises ValueError where they are not in the ``source`` given.
    """
    if source is not None:
        folder = Path(absolute(source))
        if not _whole(folder):
            raise ValueError(f"{folder} lacks {' and '.join(FILES)}; give their folder as data.source=...")
        return folder
    given = os.environ.get("TLDR_TEST_DATA")
    copy = Path(absolute(given or _PROJECT.parent / "shared" / "data")) / "cifar10"
    return copy if _whole(copy) else Path(absolute(downloads))


def download_cifar(folder: Path) -> None:
    """Have torchvision download what is not in ``folder`` yet. Raises ValueError where that fails."""
    if _whole(folder):
        return
    from torchvision import datasets  # here: it is slow to import, and most have a copy

    for file in FILES:
        split = file.partition(".")[0]
        try:
            found = datasets.CIFAR10(str(folder / "torchvision"), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"there is no CIFAR-10 at {folder}, and it cannot be downloaded: {error}; give a folder with "
                f"{' and '.join(FILES)} as data.source=..."
            ) from error
        rows = [
            {"uid": f"{split}/{CLASSES[label]}/{number:05d}.png", "image": _png(pixels), "label": int(label)}
            for number, (pixels, label) in enumerate(zip(found.data, found.targets, strict=True))
        ]
        table = pa.Table.from_pylist(rows).append_column("class", pa.array([CLASSES[row["label"]] for row in rows]))
        with atomic_path(folder / file) as temporary:
            pq.write_table(table, temporary, row_group_size=5_000)


def labelled(file: Path) -> Iterator[Row]:
    """The pictures of one file as pairs: the caption is the class's name; columns ``label`` (0 to 9) and ``class``."""
    for number, record in enumerate(pq.read_table(file, columns=["uid", "label", "class"]).to_pylist()):
        uid = record.pop("uid")
        yield Row(f"{file.name}#row={number}", record["class"], uid, record, f"{file.name} row {number}")


class CifarPictures:
    """The pictures of one split by class and number, whatever their order in the file."""

    def __init__(self, file: Path) -> None:
        table = pq.read_table(file, columns=["uid", "image", "class"])
        table = table.take(pc.sort_indices(table["uid"]))
        self._bytes = table["image"].combine_chunks()
        names = table["class"].to_numpy()
        self._rows = {name: np.flatnonzero(names == name) for name in CLASSES}
        if missing := [name for name, rows in self._rows.items() if not len(rows)]:
            raise ValueError(f"{file} has no picture of the classes {', '.join(missing)}; data.source is not CIFAR-10")
        self.pixels = lru_cache(maxsize=None)(self._pixels)

    def count(self, name: str) -> int:
        """How many pictures the class has."""
        return len(self._rows[name])

    def _pixels(self, name: str, number: int) -> Image.Image:
        with Image.open(io.BytesIO(self._bytes[int(self._rows[name][number])].as_py())) as image:
            return image.convert("RGB")


def _whole(folder: Path) -> bool:
    return all((folder / file).is_file() for file in FILES)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
