"""Captions by the main scorer, for refiners and for selectors that compare with them.

What a model writes of a pool is kept in the cache: jobs of a sweep share it.

Shapes: n pairs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from tqdm import tqdm

from tldr.atomic import atomic_path
from tldr.data.loading import PairsDataset, ordered_loader
from tldr.ledger import Meter, Stage
from tldr.model.base import Model
from tldr.pairs import Pairs
from tldr.signal.extract import fingerprint
from tldr.signal.panel import MAIN


class CaptionWriter:
    """The main scorer writes captions in batches; all of the ``scorers`` say how well captions fit. ``cache`` is where
    captions are kept."""

    def __init__(
        self,
        scorers: Mapping[str, Model],
        *,
        cache: Path,
        batch_size: int,
        num_workers: int,
        seed: int,
        generation: Mapping[str, Any],
    ) -> None:
        model = scorers[MAIN]
        if not hasattr(model, "generate") or not hasattr(model, "signals"):
            raise ValueError(
                f"{type(model).__name__} writes no captions; give a captioner's checkpoint=... or choose refiner=none"
            )
        self.scorers: dict[str, Any] = dict(scorers)
        self.cache, self.loading = cache, {"batch_size": batch_size, "num_workers": num_workers}
        self.model = fingerprint(model)
        self.seed, self.generation = seed, dict(generation)
        self.meters: dict[str, Meter] = {}  # by what is done
        self.found_seconds = self.found_flops = self.charged = 0.0

    def write(self, pairs: Pairs, *, draw: int = 0) -> list[str]:
        """A caption for each pair's picture; it depends on the seed, the size of batches and on ``draw`` alone."""
        recipe = [pairs.seen, self.model, self.generation, self.seed, self.loading["batch_size"], draw]
        key = json.dumps(recipe, sort_keys=True, default=str)
        file = self.cache / "captions" / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                return self._write(pairs, draw, file)
            kept = pq.read_table(file)
        cost = json.loads((kept.schema.metadata or {})[b"cost"])
        self.found_seconds += cost["seconds"]
        self.found_flops += cost["flops"]
        return kept["caption"].to_pylist()

    def align(self, pairs: Pairs, scorer: str = MAIN) -> np.ndarray:
        """(n,) alignment of each pair's caption with its picture, by the scorer of that name."""
        model = self.scorers[scorer]
        batches = self._batches(pairs, model, f"aligning captions {scorer}".strip())
        return np.concatenate([model.signals(batch)["alignment"].float().cpu().numpy() for batch in batches])

    def charge(self, stage: Stage) -> None:
        """Write into the ledger's ``stage`` what was spent since this was asked last, now or when captions that were
        found were written."""
        stage.flops, stage.devices = self._flops() - self.charged, int(self.scorers[MAIN].device.type != "cpu")
        stage.found_seconds, stage.found_flops = self.found_seconds, self.found_flops
        self.charged, self.found_seconds, self.found_flops = self._flops(), 0.0, 0.0

    def _flops(self) -> float:
        return sum(meter.flops for meter in self.meters.values())

    def _batches(self, pairs: Pairs, model: Any, title: str) -> Any:
        dataset, meter = PairsDataset.seen_by(model, pairs), self.meters.setdefault(title, Meter())
        with tqdm(total=len(pairs), desc=title, unit="pair") as bar:
            for batch in ordered_loader(dataset, **self.loading):
                batch["images"] = batch["images"].to(model.device)
                with meter.batch(len(batch["captions"])):  # whoever takes the batch works on it until the next
                    yield batch
                bar.update(len(batch["captions"]))

    def _write(self, pairs: Pairs, draw: int, file: Path) -> list[str]:
        model = self.scorers[MAIN]
        generator = torch.Generator(model.device).manual_seed(self.seed + (draw << 32))
        captions: list[str] = []
        start, before = time.perf_counter(), self._flops()
        for batch in self._batches(pairs, model, "writing captions"):
            captions += model.generate(batch["images"], generator=generator, **self.generation)
        cost = json.dumps({"seconds": time.perf_counter() - start, "flops": self._flops() - before})
        with atomic_path(file) as temporary:
            table = pa.table({"caption": pa.array(captions, pa.large_string())})
            pq.write_table(table.replace_schema_metadata({"cost": cost}), temporary)
        return captions
