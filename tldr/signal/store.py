"""Signals on disk: what a model says about every pair of a pool, computed once per (pool, model), read lazily.

A part is a fixed range of rows and one folder, renamed into place when it is whole:

    signals/<pool>/<model hash>/part-00000/{codes,embedding,alignment,...}.npy
                                          /errors.json        the rows whose picture could not be decoded
                                codebook.npy, ...             constants of the model
So a part is there or not there; what is there is never computed again; parts may be made by any number of processes.

Shapes: N pairs, R rows of a part.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np

from tldr.atomic import atomic_path
from tldr.pairs import Pairs

PART_ROWS = 4096


class Signal:
    """One signal of N rows: ``shape``, ``dtype``, and its values part by part or whole."""

    def __init__(self, name: str, files: list[Path], rows: np.ndarray | None, count: int) -> None:
        self.name, self._files, self._rows = name, files, rows
        first = np.load(files[0], mmap_mode="r")
        self.dtype = first.dtype
        self.shape = (count, *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self) -> Iterator[np.ndarray]:
        """Consecutive slices, one for each part with a selected row; memory-mapped if all rows are selected."""
        for number, file in enumerate(self._files):
            part = np.load(file, mmap_mode="r")
            if self._rows is not None:
                start = number * PART_ROWS
                low, high = np.searchsorted(self._rows, (start, start + PART_ROWS))
                part = part[self._rows[low:high] - start]
            if len(part):
                yield part

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(N, ...) all values, or those at sorted ``rows``."""
        if rows is None:
            return gathered(self.chunks(), len(self)) if len(self) else np.empty(self.shape, self.dtype)
        ends = np.cumsum([0] + [len(chunk) for chunk in self.chunks()])
        cuts = np.searchsorted(rows, ends)
        pieces = [
            chunk[rows[low:high] - start]
            for chunk, start, low, high in zip(self.chunks(), ends, cuts, cuts[1:], strict=False)
            if high > low
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, *self.shape[1:]), self.dtype)


def gathered(chunks: Iterable[np.ndarray], count: int) -> np.ndarray:
    """(N, ...) the rows of all ``chunks``, ``count`` in all and at least one. Each chunk is copied as it comes, so that
    there are never two copies of all, nor the files of all parts open."""
    rows, start = np.empty(0), 0
    for chunk in chunks:
        if not start:
            rows = np.empty((count, *chunk.shape[1:]), chunk.dtype)
        rows[start : start + len(chunk)] = chunk
        start += len(chunk)
    assert start == count, "every row comes once"
    return rows


def parts_of(count: int) -> list[range]:
    """The rows of each part of ``count`` pairs."""
    return [range(start, min(start + PART_ROWS, count)) for start in range(0, count, PART_ROWS)]


class Signals(Mapping[str, Signal]):
    """The signals of a pool of ``count`` pairs by one model, in ``folder``; ``rows`` narrows them to part of the
    pool."""

    def __init__(self, folder: str | Path, count: int, rows: np.ndarray | None = None) -> None:
        self.folder, self.count, self.rows = Path(folder), count, rows

    @property
    def parts(self) -> int:
        """How many parts N rows make."""
        return len(parts_of(self.count))

    def part(self, number: int) -> Path:
        """The folder of a part."""
        return self.folder / f"part-{number:05d}"

    def missing(self, among: Iterable[int] | None = None) -> list[int]:
        """The parts, or those ``among`` them, that have not been computed."""
        return [n for n in (range(self.parts) if among is None else among) if not self.part(n).is_dir()]

    def __getitem__(self, name: str) -> Signal:
        files = [self.part(number) / f"{name}.npy" for number in range(self.parts)]
        if not files or not files[0].is_file():
            raise ValueError(f"no signal {name!r} in {self.folder}; there are {', '.join(self) or 'none'}")
        return Signal(name, files, self.rows, len(self.rows) if self.rows is not None else self.count)

    def __contains__(self, name: object) -> bool:
        return name in list(self)  # Mapping's own asks __getitem__ for a KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(file.stem for file in self.part(0).glob("*.npy")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def refuse_infinite(self, name: str, pool: Pairs) -> None:
        """Raises ValueError with the uids of ``pool``, whose signals these are, where the signal ``name`` is NaN or
        infinite."""
        signal = self[name]
        if signal.dtype.kind == "f":  # codes are numbers, and need not be read for that
            axes = tuple(range(1, len(signal.shape)))
            finite = (np.logical_and.reduce(np.isfinite(chunk), axis=axes) for chunk in signal.chunks())
            pool.refuse_infinite(name, gathered(finite, len(pool)))

    def constant(self, name: str) -> np.ndarray:
        """An array that belongs to the model, not to a pair: ``codebook`` (K, D)."""
        file = self.folder / f"{name}.npy"
        if not file.is_file():
            raise ValueError(f"the model behind {self.folder} has no {name}; a VQ-VLM has (model=vqvlm)")
        return np.load(file)

    def at(self, rows: np.ndarray) -> Signals:
        """These signals for the sorted ``rows`` of the pool alone."""
        return Signals(self.folder, self.count, rows if self.rows is None else self.rows[rows])

    def derived(self, name: str) -> Path:
        """A folder for what is expensive to learn from these signals (experts, say), so that the next job of a sweep
        finds it; ``name`` should identify everything else that it depends on."""
        narrowed = "" if self.rows is None else f"-{hashlib.blake2b(self.rows.tobytes(), digest_size=8).hexdigest()}"
        return self.folder / "derived" / f"{name}{narrowed}"

    def errors(self) -> dict[int, str]:
        """Pool row -> why its picture could not be decoded; such a row's signals mean nothing."""
        found: dict[int, str] = {}
        for number in range(self.parts):
            found.update(
                {int(row): why for row, why in json.loads((self.part(number) / "errors.json").read_text()).items()}
            )
        return found

    def write_part(self, number: int, arrays: Mapping[str, np.ndarray], errors: Mapping[int, str]) -> None:
        """Put a part in place, whole or not at all."""
        target = self.part(number)
        temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
        try:
            temporary.mkdir(parents=True)
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / "errors.json").write_text(json.dumps({str(row): why for row, why in sorted(errors.items())}))
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else another process finished the same part first: the same bytes
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_constant(self, name: str, array: np.ndarray) -> None:
        """Store an array that belongs to the model, once: every part asks for it, and the folder is one model's."""
        file = self.folder / f"{name}.npy"
        if not file.is_file():
            with atomic_path(file) as temporary, temporary.open("wb") as sink:
                np.save(sink, array)
