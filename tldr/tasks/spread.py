"""What models do with every pair of a pool, as tasks that an engine hands out (`tldr.engine`): a worker is sent the
model and where the pairs lie, opens both once, and does the parts that it is given.

Shapes: n pairs of a part.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from tldr.atomic import atomic_path, write_json
from tldr.data.loading import PairsDataset
from tldr.engine import Engine
from tldr.ledger import COST, Meter
from tldr.model.base import Model, build, describe
from tldr.pairs import Pairs
from tldr.signal.extract import Tick, batches_of, extract, shown
from tldr.signal.store import parts_of


class Tally(NamedTuple):
    """What a worker reports of the parts that it did: by part, the results that are not in files; the number of pairs;
    the FLOPs of the networks; the accelerator, "" if none."""

    found: dict[int, Any]
    rows: int
    flops: float
    accelerator: str


class PortableModel:
    """A model that is sent to another process as its description and weights, from whatever device."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __getstate__(self) -> dict[str, Any]:
        sink = io.BytesIO()
        torch.save({name: value.detach().cpu() for name, value in self.model.state_dict().items()}, sink)
        return {"description": describe(self.model), "weights": sink.getvalue()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.model = build(state["description"])
        self.model.load_state_dict(torch.load(io.BytesIO(state["weights"]), weights_only=True))
        self.model.eval()


class PortablePairs:
    """Pairs that are sent to another process as the name of a file. Inside ``filed()`` that file exists: the pool's, in
    ``cache``, or one of their own."""

    def __init__(self, pairs: Pairs, cache: Path) -> None:
        self.pairs, self.cache = pairs, cache.resolve()
        self.folder: Path | None = None

    @contextmanager
    def filed(self) -> Iterator[None]:
        """Inside, the pairs can be pickled."""
        pool, own = self.cache / "pools" / self.pairs.hash, self.cache / "sent" / uuid4().hex
        known = (pool / "pairs.arrow").is_file() and Pairs.open(pool).table.equals(self.pairs.table)
        self.folder = pool if known else own
        try:
            if not known:
                self.pairs.write(own)
            yield
        finally:
            self.folder = None
            shutil.rmtree(own, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        assert self.folder is not None, "pairs are filed before they are sent"
        return {"folder": self.folder, "root": self.pairs.root}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.pairs = replace(Pairs.open(state["folder"]), root=state["root"])  # its root may be that of another job


@dataclass(kw_only=True)
class Spread(ABC):
    """A task that applies ``model`` to the parts of ``pairs`` (`tldr.signal.store.parts_of`)."""

    model: PortableModel
    pairs: PortablePairs
    batch_size: int
    num_workers: int
    peers: int = field(default=1, init=False)

    @classmethod
    def of(cls, model: Model, pairs: Pairs, cache: Path, **options: Any) -> Self:
        """The task for these, in a form that can be sent; ``cache`` may have a file of the pairs."""
        return cls(model=PortableModel(model), pairs=PortablePairs(pairs, cache), **options)

    def clock(self, meter: Meter) -> Callable[[], dict[str, float]]:
        """A function that tells the cost since now: FLOPs, and seconds divided by the workers that run at once."""
        start, flops = time.perf_counter(), meter.flops
        return lambda: {"seconds": (time.perf_counter() - start) / self.peers, "flops": meter.flops - flops}

    @abstractmethod
    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """A function that does parts with the model and returns, by part, the results that are not in files."""

    def open(self, device: str, peers: int = 1) -> Callable[..., Tally]:
        """As `tldr.engine.Task` requires."""
        self.peers = peers
        model, meter = self.model.model.to(device), Meter()
        do, accelerator = self.begin(model, meter), _accelerator(model.device)

        def work(parts: Sequence[int], tick: Tick = lambda _: None) -> Tally:
            rows, flops = meter.rows, meter.flops
            found = do(parts, tick)
            return Tally(found, meter.rows - rows, meter.flops - flops, accelerator)

        return work

    def run(self, engine: Engine, parts: Sequence[int], *, device: torch.device, title: str) -> list[Tally]:
        """The tallies of all ``parts``, done here or by ``engine``, on ``device``; with a progress bar."""
        if not len(parts):
            return []
        rows = self.parts
        with tqdm(total=sum(len(rows[number]) for number in parts), desc=title, unit="pair") as bar:
            if engine.alone(device):
                return [self.open(str(device))(parts, bar.update)]
            tallies = []
            with self.pairs.filed():
                for tally in engine.run(self, parts, device=device):
                    bar.update(tally.rows)
                    tallies.append(tally)
            return tallies

    @property
    def parts(self) -> list[range]:
        """The rows of each."""
        return parts_of(len(self.pairs.pairs))

    @property
    def loading(self) -> dict[str, int]:
        """How pictures are read."""
        return {"batch_size": self.batch_size, "num_workers": self.num_workers}


@dataclass(kw_only=True)
class Scoring(Spread):
    """Write signals into ``folder`` (`tldr.signal.extract`), and what each part cost beside them."""

    folder: Path

    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """All results are in files."""
        pool = self.pairs.pairs
        dataset = shown(pool, model)

        def do(parts: Sequence[int], tick: Tick) -> dict[int, Any]:
            options: dict[str, Any] = {"dataset": dataset, "meter": meter, "tick": tick, **self.loading}
            for number in parts:
                spent = self.clock(meter)
                part = extract(pool, model, folder=self.folder, parts=[number], **options).part(number)
                if not (part / COST).exists():
                    write_json(part / COST, spent())
            return {}

        return do


@dataclass(kw_only=True)
class Writing(Spread):
    """Write captions, with the options ``generation``, and their cost into a file of ``folder`` for each part. They
    depend on the ``seed``, the ``draw``, the part and the batch size."""

    folder: Path
    generation: Mapping[str, Any]
    seed: int
    draw: int

    def file(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """All results are in files."""
        dataset, rows = PairsDataset.seen_by(model, self.pairs.pairs), self.parts

        def do(parts: Sequence[int], tick: Tick) -> dict[int, Any]:
            counted: dict[str, Any] = {"device": model.device, "meter": meter, "tick": tick, **self.loading}
            for number in parts:
                spent, captions = self.clock(meter), []
                # A CPU's generator takes 32 bits of a seed: these are mixed from all three.
                drawn = np.random.SeedSequence((self.seed, self.draw, number)).generate_state(1)
                generator = torch.Generator(model.device).manual_seed(int(drawn[0]))
                for batch in batches_of(dataset, rows[number], **counted):
                    captions += model.generate(batch["images"], generator=generator, **self.generation)
                table = pa.table({"caption": pa.array(captions, pa.large_string())})
                with atomic_path(self.file(number)) as temporary:
                    pq.write_table(table.replace_schema_metadata({"cost": json.dumps(spent())}), temporary)
            return {}

        return do


@dataclass(kw_only=True)
class Aligning(Spread):
    """(n,) float32 alignment of each pair's caption with its picture."""

    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """It lies in no file."""
        dataset, rows = PairsDataset.seen_by(model, self.pairs.pairs), self.parts

        def do(parts: Sequence[int], tick: Tick) -> dict[int, Any]:
            counted: dict[str, Any] = {"device": model.device, "meter": meter, "tick": tick, **self.loading}
            found: dict[int, Any] = {}
            for number in parts:
                batches = batches_of(dataset, rows[number], **counted)
                values = [model.signals(batch)["alignment"].float().cpu().numpy() for batch in batches]
                found[number] = np.concatenate(values).astype(np.float32)
            return found

        return do


def _accelerator(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    name = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else str(device)
    return f"{socket.gethostname()} {name}"
