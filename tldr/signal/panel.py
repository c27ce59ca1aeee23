"""The signals of several scorers together: ``alignment`` is what the main one (``model=``) says, ``clip.alignment``
what the one called ``clip`` says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tldr.signal.store import Signal, Signals

MAIN = ""  # the name of the scorer whose signals have no prefix
WRITER = "writer"  # of the captioner that writes for refiners, where it is another


def scorers_of(needs: Iterable[str]) -> list[str]:
    """The names of the scorers that give such signals, sorted: ``["alignment", "clip.embedding"]`` -> ``["",
    "clip"]``."""
    return sorted({name.rpartition(".")[0] for name in needs})


def signals_of(scorer: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that ``scorer`` gives, as it calls them: of ``clip``, ``["alignment", "clip.embedding"]`` ->
    ``["embedding"]``."""
    return [signal for of, _, signal in (name.rpartition(".") for name in names) if of == scorer]


class Panel(Signals):
    """``scorers`` by name, at least one, all of the same pool."""

    def __init__(self, scorers: Mapping[str, Signals]) -> None:
        first = next(iter(scorers.values()))
        super().__init__(first.folder, first.count, first.rows)
        self.scorers = dict(scorers)

    def _of(self, name: str) -> tuple[Signals, str]:
        scorer, _, signal = name.rpartition(".")
        if scorer not in self.scorers:
            raise ValueError(f"no signal {name!r}; there are {', '.join(self) or 'none'}")
        return self.scorers[scorer], signal

    def __getitem__(self, name: str) -> Signal:
        signals, signal = self._of(name)
        return signals[signal]

    def __iter__(self) -> Iterator[str]:
        for scorer, signals in self.scorers.items():
            yield from (f"{scorer}.{signal}" if scorer else signal for signal in signals)

    def missing(self, among: Iterable[int] | None = None) -> list[int]:
        """The parts, or those ``among`` them, that some scorer has not computed."""
        asked = None if among is None else list(among)
        return sorted({part for signals in self.scorers.values() for part in signals.missing(asked)})

    def constant(self, name: str) -> np.ndarray:
        """An array that belongs to a model: ``codebook`` of the main one."""
        signals, constant = self._of(name)
        return signals.constant(constant)

    def at(self, rows: np.ndarray) -> Panel:
        """These signals for the sorted ``rows`` of the pool alone."""
        return Panel({scorer: signals.at(rows) for scorer, signals in self.scorers.items()})

    def derived(self, name: str) -> Path:
        """As for one scorer; with several, the name depends on all of them, as what is learned may do."""
        if len(self.scorers) > 1:
            folders = "".join(str(signals.folder) for signals in self.scorers.values())
            name = f"{name}-{hashlib.blake2b(folders.encode(), digest_size=8).hexdigest()}"
        return super().derived(name)

    def errors(self) -> dict[int, str]:
        """Pool row -> why its picture could not be decoded."""
        return {row: why for signals in self.scorers.values() for row, why in signals.errors().items()}

    def write_part(self, number: int, arrays: Mapping[str, np.ndarray], errors: Mapping[int, str]) -> None:
        """A panel is read only."""
        raise TypeError("write to one of its scorers")

    def write_constant(self, name: str, array: np.ndarray) -> None:
        """A panel is read only."""
        raise TypeError("write to one of its scorers")
