"""What a run cost, stage by stage: seconds, seconds of accelerators, pictures seen. A method that takes more to select
than it saves in training should be seen to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tldr.atomic import write_json


@dataclass
class Stage:
    """One stage: wall-clock ``seconds``, ``device_seconds`` (of accelerators), ``images`` decoded, and whether its
    result was ``cached`` by an earlier run."""

    name: str
    seconds: float = 0.0
    device_seconds: float = 0.0
    images: int = 0
    cached: bool = False


@dataclass
class Ledger:
    """The stages of a run in order."""

    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time what happens inside."""
        entry = Stage(name)
        self.stages.append(entry)
        start = time.perf_counter()
        try:
            yield entry
        finally:
            entry.seconds = round(time.perf_counter() - start, 3)
            if torch.cuda.is_available() and not entry.cached:
                entry.device_seconds = entry.seconds * torch.cuda.device_count()

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def write(self, folder: Path) -> Path:
        """``ledger.json``."""
        return write_json(folder / "ledger.json", [vars(stage) for stage in self.stages])
