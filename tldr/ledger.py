"""What a run cost, stage by stage: seconds, accelerator seconds, pictures seen, FLOPs of networks. If a method takes
more to select than it saves in training, this should show it.

FLOPs are those of matrix products, convolutions and attention (`torch.utils.flop_counter`), as executed: recomputation
to save memory counts. The cost of k-means or of sorting is in the seconds only.
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

COST = "cost.json"  # in the folder of a result that later runs may reuse: what it took to make it


@dataclass
class Stage:
    """One stage: wall-clock ``seconds``, the accelerators that it used (``devices``) and their ``device_seconds``,
    ``images`` decoded, ``flops``, and whether its result was ``cached`` by an earlier run.

    ``made_seconds`` and ``made_flops`` are what it took to make the result, in this run or in that earlier one; None
    if it was not recorded. ``found_seconds`` and ``found_flops`` are the cost of parts reused from earlier runs."""

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
        """Add the ``seconds`` and ``flops`` that an earlier run recorded for a part that is reused."""
        self.found_seconds += cost["seconds"]
        self.found_flops += cost["flops"]


@dataclass
class Ledger:
    """The stages of a run in order."""

    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, *, home: Path | None = None) -> Iterator[Stage]:
        """Time the body. ``home`` is the folder of its result if later runs may reuse that: the cost is written there,
        or read from there if the stage is marked as ``cached``."""
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
        """The seconds of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    def write(self, folder: Path) -> Path:
        """``ledger.json``."""
        return write_json(folder / "ledger.json", [vars(stage) for stage in self.stages])


_open: ContextVar[Stage] = ContextVar("the stage that is being timed")
_charged: ContextVar[set[Path]] = ContextVar("results that it has made or was charged for")


@contextmanager
def metered(home: Path | None = None, *, device: torch.device | str = "cpu") -> Iterator[Meter]:
    """Charge the FLOPs that the `Meter` counts for training on ``device`` to the open stage. If the result is kept in
    ``home`` for later runs, its cost is recorded there, added to what was recorded before."""
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
    """Charge the open stage for reusing the result in ``home``, as far as its cost is known, and only once however
    often it is used."""
    charged = _charged.get(set())
    if home not in charged:
        charged.add(home)
        charge(cost_of(home))


def charge(cost: Mapping[str, float]) -> None:
    """Charge the open stage the ``seconds`` and ``flops`` that an earlier run spent on what is reused."""
    if (stage := _open.get(None)) is not None:
        stage.add_found(cost)


def cost_of(home: Path) -> dict[str, float]:
    """The ``seconds`` and ``flops`` that a result in ``home`` took; zeros if they were not recorded."""
    file = home / COST
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"seconds": 0.0, "flops": 0.0}


def _remember(entry: Stage, file: Path) -> None:
    if not entry.cached:
        write_json(file, {"seconds": entry.made_seconds, "flops": entry.made_flops})
    elif file.is_file():
        cost = json.loads(file.read_text(encoding="utf-8"))
        entry.made_seconds, entry.made_flops = cost["seconds"], cost["flops"]


class Meter:
    """FLOPs of many batches that differ only in the length of their captions: the first few are counted operation by
    operation, which is slow; the others are assumed to need as much per row."""

    def __init__(self, *, batches: int = 3) -> None:
        self.batches, self.rows = batches, 0
        self._counted = [0, 0]  # rows, FLOPs

    @property
    def counting(self) -> bool:
        """Will the next batch be counted?"""
        return self.batches > 0

    @property
    def per_row(self) -> float:
        """FLOPs per row of the batches counted so far."""
        rows, flops = self._counted
        return flops / max(1, rows)

    @property
    def flops(self) -> float:
        """Estimated FLOPs of all batches so far."""
        return self.rows * self.per_row

    @contextmanager
    def batch(self, rows: int) -> Iterator[None]:
        """Treat the body as the work on one batch of ``rows``."""
        if self.counting:
            with flop_counter() as counter:
                yield
            self.batches -= 1
            self._counted = [self._counted[0] + rows, self._counted[1] + counter.get_total_flops()]
        else:
            yield
        self.rows += rows


class _NoModules:
    """Replaces the counter's module tracker: only the total is needed, and the tracker's hooks break gradients taken
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
