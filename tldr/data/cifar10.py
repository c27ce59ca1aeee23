"""CIFAR-10 (Krizhevsky, 2009; https://www.cs.toronto.edu/~kriz/cifar.html) as pictures and words: the caption is the
name of the class, which zero-shot classification has to find. `tldr.data.cifar` says where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tldr.data.base import Bad, Reader, Row
from tldr.data.cifar import cifar_folder, download_cifar, labelled


class Cifar10(Reader):
    """The pictures of ``split``, test or train, with the columns ``label`` (0 to 9) and ``class``.

    ``source`` is the folder of the parquet files; by default they are found, or downloaded into ``downloads``.
    """

    def __init__(
        self, *, source: str | Path | None = None, downloads: str | Path, split: str = "test", name: str = "cifar10"
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"data.split={split!r}; cifar10 has train and test")
        self.root = str(cifar_folder(source, downloads))
        self.split = split
        self.name = name

    def prepare(self) -> None:
        """Download, where there is no copy."""
        download_cifar(Path(self.root))

    def rows(self) -> Iterator[Row | Bad]:
        """The pictures in the order of the file."""
        self.prepare()
        yield from labelled(Path(self.root) / f"{self.split}.parquet")
