"""What models do with every pair of a pool, as tasks that an engine hands out (`tldr.engine`): a worker is sent the
model and where the pairs lie, opens both once, and does the parts that it is given.

Shapes: n pairs of a part.
"""

from __future__ import annotations

import io
import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Subset
from tqdm import tqdm

from tldr.atomic import atomic_path
from tldr.data.loading import Batch, PairsDataset, ordered_loader
from tldr.engine import Engine
from tldr.ledger import Meter
from tldr.model.base import Model, build, describe
from tldr.pairs import Pairs
from tldr.signal.extract import extract
from tldr.signal.store import PART_ROWS


class Tally(NamedTuple):
    """What a worker tells of parts that it did: of each, what lies in no file; the pairs; the FLOPs of the networks;
    the accelerator, "" if none."""

    found: dict[int, Any]
    rows: int
    flops: float
    accelerator: str


class PortableModel:
    """A model, which travels to another process as its description and weights, from whatever device."""

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
    """Pairs, which travel as the name of their file: in ``pools``, where they are written unless they lie there."""

    def __init__(self, pairs: Pairs, pools: Path) -> None:
        self.pairs, self.pools = pairs, pools

    def __getstate__(self) -> dict[str, Any]:
        folder = self.pools.resolve() / self.pairs.hash
        if not (folder / "pairs.arrow").is_file():
            self.pairs.write(folder)
        return {"folder": folder}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.pairs = Pairs.open(state["folder"])


Tick = Callable[[int], Any]  # told of every batch how many pairs it had


@dataclass
class Spread(ABC):
    """``model`` does something with the parts of ``pairs``, of PART_ROWS each."""

    model: PortableModel
    pairs: PortablePairs
    batch_size: int
    num_workers: int

    @abstractmethod
    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """What does parts with the model, and gives of each what lies in no file."""

    def open(self, device: str) -> Callable[..., Tally]:
        """As `tldr.engine.Task` asks."""
        model, meter = self.model.model.to(device), Meter()
        do, accelerator = self.begin(model, meter), _accelerator(model.device)

        def work(parts: Sequence[int], tick: Tick = lambda _: None) -> Tally:
            rows, flops = meter.rows, meter.flops
            found = do(parts, tick)
            return Tally(found, meter.rows - rows, meter.flops - flops, accelerator)

        return work

    def run(self, engine: Engine, parts: Sequence[int], title: str) -> Iterator[Tally]:
        """The tallies of all ``parts``, while a bar shows how far they are."""
        device = self.model.model.device
        with tqdm(total=sum(len(self.rows(number)) for number in parts), desc=title, unit="pair") as bar:
            if engine.alone(device):
                yield self.open(str(device))(parts, bar.update)
            else:
                for tally in engine.run(self, parts, device=device):
                    bar.update(tally.rows)
                    yield tally

    def rows(self, number: int) -> range:
        """Of a part."""
        return range(number * PART_ROWS, min((number + 1) * PART_ROWS, len(self.pairs.pairs)))

    def batches(self, number: int, dataset: PairsDataset, model: Model, meter: Meter, tick: Tick) -> Iterator[Batch]:
        """Those of a part, on the model's device."""
        shown = Subset(dataset, self.rows(number))
        for batch in ordered_loader(shown, batch_size=self.batch_size, num_workers=self.num_workers):
            batch["images"] = batch["images"].to(model.device)
            with meter.batch(len(batch["captions"])):  # whoever takes the batch works on it until the next
                yield batch
            tick(len(batch["captions"]))


@dataclass
class Scoring(Spread):
    """Signals into ``folder`` (`tldr.signal.extract`)."""

    folder: Path

    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """All lies in files."""
        loading = {"batch_size": self.batch_size, "num_workers": self.num_workers}

        def do(parts: Sequence[int], tick: Tick) -> dict[int, Any]:
            extract(self.pairs.pairs, model, folder=self.folder, parts=parts, meter=meter, tick=tick, **loading)
            return {}

        return do


@dataclass
class Writing(Spread):
    """Captions, ``generation`` being how, into a file of ``folder`` for each part, and what they cost; those of a part
    depend on the ``seed``, the ``draw``, the part and the size of batches."""

    folder: Path
    generation: Mapping[str, Any]
    seed: int
    draw: int

    def file(self, number: int) -> Path:
        """Of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """All lies in files."""
        dataset = PairsDataset.seen_by(model, self.pairs.pairs)

        def do(parts: Sequence[int], tick: Tick) -> dict[int, Any]:
            for number in parts:
                start, flops, captions = time.perf_counter(), meter.flops, []
                # A CPU's generator takes 32 bits of a seed: these are mixed from all three.
                drawn = np.random.SeedSequence((self.seed, self.draw, number)).generate_state(1)
                generator = torch.Generator(model.device).manual_seed(int(drawn[0]))
                for batch in self.batches(number, dataset, model, meter, tick):
                    captions += model.generate(batch["images"], generator=generator, **self.generation)
                cost = json.dumps({"seconds": time.perf_counter() - start, "flops": meter.flops - flops})
                table = pa.table({"caption": pa.array(captions, pa.large_string())})
                with atomic_path(self.file(number)) as temporary:
                    pq.write_table(table.replace_schema_metadata({"cost": cost}), temporary)
            return {}

        return do


@dataclass
class Aligning(Spread):
    """(n,) float32 alignment of each pair's caption with its picture."""

    def begin(self, model: Any, meter: Meter) -> Callable[[Sequence[int], Tick], dict[int, Any]]:
        """It lies in no file."""
        dataset = PairsDataset.seen_by(model, self.pairs.pairs)

        def do(parts: Sequence[int], tick: Tick) -> dict[int, Any]:
            found: dict[int, Any] = {}
            for number in parts:
                batches = self.batches(number, dataset, model, meter, tick)
                values = [model.signals(batch)["alignment"].float().cpu().numpy() for batch in batches]
                found[number] = np.concatenate(values).astype(np.float32)
            return found

        return do


def _accelerator(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    name = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else str(device)
    return f"{socket.gethostname()} {name}"
