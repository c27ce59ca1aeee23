"""What a run cost, stage by stage: seconds, seconds of accelerators, pictures seen, FLOPs of networks. A method that
takes more to select than it saves in training should be seen to.

FLOPs are those of matrix products, convolutions and attention (`torch.utils.flop_counter`), as they were done:
recomputing for memory's sake counts. What k-means or a sort takes is in the seconds alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tldr.atomic import write_json

COST = "cost.json"  # in the folder of a result that later runs may find: what it took to make it


@dataclass
class Stage:
    """One stage: wall-clock ``seconds``, the accelerators that it used (``devices``) and their ``device_seconds``,
    ``images`` decoded, ``flops``, and whether its result was ``cached`` by an earlier run.

    ``made_seconds`` and ``made_flops`` are what the result took when it was made, now or by that earlier run; None
    where nobody wrote it down. ``found_seconds`` and ``found_flops`` are of parts that earlier runs had made."""

    name: str
    seconds: float = 0.0
    devices: int = 0
    device_seconds: float = 0.0
    images: int = 0
    cached: bool = False
    flops: float = 0.0
    found_seconds: float = 0.0
    found_flops: float = 0.0
    made_seconds: float | None = None
    made_flops: float | None = None

    def add_found(self, cost: Mapping[str, float]) -> None:
        """Count a part that an earlier run had made, by the ``seconds`` and ``flops`` that it wrote down."""
        self.found_seconds += cost["seconds"]
        self.found_flops += cost["flops"]


@dataclass
class Ledger:
    """The stages of a run in order."""

    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, *, home: Path | None = None) -> Iterator[Stage]:
        """Time what happens inside. Its result lies in ``home``, if later runs may find it there: the cost is written
        beside it, or read from there where the stage says that it is ``cached``."""
        entry = Stage(name)
        self.stages.append(entry)
        outer, before = _open.set(entry), _charged.set(set())
        start = time.perf_counter()
        try:
            yield entry
        finally:
            _open.reset(outer)
            _charged.reset(before)
            entry.seconds = round(time.perf_counter() - start, 3)
            if not entry.cached:
                entry.device_seconds = entry.seconds * entry.devices
                entry.made_seconds = entry.seconds + entry.found_seconds
                entry.made_flops = entry.flops + entry.found_flops
        if home is not None:  # a stage that failed does not come here
            _remember(entry, home / COST)

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def write(self, folder: Path) -> Path:
        """``ledger.json``."""
        return write_json(folder / "ledger.json", [vars(stage) for stage in self.stages])


_open: ContextVar[Stage] = ContextVar("the stage that is being timed")
_charged: ContextVar[set[Path]] = ContextVar("results that it has made or was charged for")


@contextmanager
def metered(home: Path | None = None, *, device: torch.device | str = "cpu") -> Iterator[Meter]:
    """Networks are trained on ``device`` for the stage that is open, which is charged the FLOPs of the `Meter`. Where
    the result lies in ``home`` for later runs, so does what it took, beside what was told there before."""
    stage, meter, start = _open.get(None), Meter(), time.perf_counter()
    yield meter
    if stage is not None:
        stage.flops += meter.flops
        stage.devices = max(stage.devices, int(torch.device(device).type != "cpu"))
    if home is not None:
        before = cost_of(home)
        took = time.perf_counter() - start
        cost = {"seconds": round(took + before["seconds"], 3), "flops": meter.flops + before["flops"]}
        write_json(home / COST, cost)
        _charged.get(set()).add(home)


def charge_found(home: Path) -> None:
    """A result in ``home`` is used: the stage that is open is told what that took an earlier run, as far as known, once
    however often it is used."""
    charged = _charged.get(set())
    if home not in charged:
        charged.add(home)
        charge(cost_of(home))


def charge(cost: Mapping[str, float]) -> None:
    """What is used took an earlier run so many ``seconds`` and ``flops``: the stage that is open is told."""
    if (stage := _open.get(None)) is not None:
        stage.add_found(cost)


def cost_of(home: Path) -> dict[str, float]:
    """The ``seconds`` and ``flops`` that a result in ``home`` took; zeros where nobody wrote them down."""
    file = home / COST
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"seconds": 0.0, "flops": 0.0}


def _remember(entry: Stage, file: Path) -> None:
    if not entry.cached:
        write_json(file, {"seconds": entry.made_seconds, "flops": entry.made_flops})
    elif file.is_file():
        cost = json.loads(file.read_text(encoding="utf-8"))
        entry.made_seconds, entry.made_flops = cost["seconds"], cost["flops"]


class Meter:
    """FLOPs of many batches that are alike but for the length of their captions: the first few are counted operation by
    operation, which takes time; the others are taken to need as much for each row."""

    def __init__(self, *, batches: int = 3) -> None:
        self.batches, self.rows = batches, 0
        self._counted = [0, 0]  # rows, FLOPs

    @property
    def counting(self) -> bool:
        """Will the next batch be counted?"""
        return self.batches > 0

    @property
    def per_row(self) -> float:
        """As far as is known."""
        rows, flops = self._counted
        return flops / max(1, rows)

    @property
    def flops(self) -> float:
        """Of all batches so far."""
        return self.rows * self.per_row

    @contextmanager
    def batch(self, rows: int) -> Iterator[None]:
        """What happens inside is the work on ``rows`` of them."""
        if self.counting:
            with flop_counter() as counter:
                yield
            self.batches -= 1
            self._counted = [self._counted[0] + rows, self._counted[1] + counter.get_total_flops()]
        else:
            yield
        self.rows += rows


class _NoModules:
    """Stands in for the tracker of modules: we ask for the sum alone, and its hooks break a gradient that is taken
    inside a backward pass."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which by itself does not know the attention of CPUs."""
    ops: Any = torch.ops.aten
    counter: Any = FlopCounterMode(
        display=False,
        custom_mapping={
            ops._scaled_dot_product_flash_attention_for_cpu: _attention,
            ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )
    counter.mod_tracker = _NoModules()
    return counter


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad_out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)
