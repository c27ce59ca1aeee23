"""Captions by the main scorer, for refiners and for selectors that compare with them.

What a model writes of a pool is kept in the cache, part by part: jobs of a sweep share it, and one that was killed goes
on with what is missing.

Shapes: n pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from filelock import FileLock

from tldr.engine import Engine
from tldr.ledger import Stage
from tldr.model.base import Model
from tldr.pairs import Pairs
from tldr.signal.extract import fingerprint
from tldr.signal.panel import MAIN
from tldr.tasks.scorer import refuse_chance
from tldr.tasks.spread import Aligning, Spread, Tally, Writing


class CaptionWriter:
    """The main scorer writes captions in batches; all of the ``scorers`` say how well captions fit; ``engine`` has
    them do it. ``cache`` is where captions are kept."""

    def __init__(
        self,
        scorers: Mapping[str, Model],
        *,
        cache: Path,
        engine: Engine,
        device: torch.device,
        batch_size: int,
        num_workers: int,
        seed: int,
        generation: Mapping[str, Any],
    ) -> None:
        model = scorers[MAIN]
        if not hasattr(model, "generate") or not hasattr(model, "signals"):
            raise ValueError(
                f"{type(model).__name__} does not write captions; give a captioner as checkpoint=... (or as "
                "writer=..., if that is set), or choose refiner=none"
            )
        self.scorers, self.engine, self.device, self.cache = dict(scorers), engine, device, cache
        self.loading = {"batch_size": batch_size, "num_workers": num_workers}
        self.model = fingerprint(model)
        self.seed, self.generation = seed, dict(generation)
        self.spent = Stage("writer")  # since `charge` was asked last
        self.accelerators: set[str] = set()
        self.charged: set[Path] = set()  # parts that were written or charged for

    @property
    def varies(self) -> bool:
        """Does another ``draw`` write other captions?"""
        return self.generation.get("strategy", "nucleus") == "nucleus"

    def write(self, pairs: Pairs, *, draw: int = 0) -> list[str]:
        """A caption for each pair's picture; it depends on the seed, the size of batches and on ``draw`` alone."""
        recipe = [pairs.seen, self.model, self.generation, self.seed, self.loading["batch_size"], draw]
        key = json.dumps(recipe, sort_keys=True, default=str)
        folder = self.cache / "captions" / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        drawn = {"generation": self.generation, "seed": self.seed, "draw": draw}
        task = Writing.of(self.scorers[MAIN], pairs, self.cache, folder=folder.resolve(), **drawn, **self.loading)
        parts = range(len(task.parts))
        with FileLock(folder / "lock"):
            missing = [number for number in parts if not task.file(number).is_file()]
            self._run(task, missing, "writing captions")
        self.charged |= {task.file(number) for number in missing}
        captions: list[str] = []
        for number in parts:
            kept = pq.read_table(task.file(number))
            captions += kept["caption"].to_pylist()
            if task.file(number) not in self.charged:
                self.charged.add(task.file(number))
                self.spent.add_found(json.loads((kept.schema.metadata or {})[b"cost"]))
        return captions

    def align(self, pairs: Pairs, scorer: str = MAIN) -> np.ndarray:
        """(n,) alignment of each pair's caption with its picture, by the scorer of that name."""
        key = f"scorers.{scorer}.checkpoint" if scorer else "the captioner's checkpoint"
        refuse_chance(self.scorers[scorer], ["alignment"], key)
        task = Aligning.of(self.scorers[scorer], pairs, self.cache, **self.loading)
        parts = range(len(task.parts))
        tallies = self._run(task, parts, f"aligning captions {scorer}".strip())
        found = {number: values for tally in tallies for number, values in tally.found.items()}
        return np.concatenate([found[number] for number in parts])

    def charge(self, stage: Stage) -> None:
        """Add to the ledger's ``stage`` what was spent since the last call: now or, for captions found in the cache,
        when they were written."""
        stage.flops, stage.devices = stage.flops + self.spent.flops, max(stage.devices, len(self.accelerators))
        stage.add_found({"seconds": self.spent.found_seconds, "flops": self.spent.found_flops})
        self.spent = Stage("writer")
        self.accelerators.clear()

    def _run(self, task: Spread, parts: Sequence[int], title: str) -> list[Tally]:
        tallies = task.run(self.engine, parts, device=self.device, title=title)
        self.spent.flops += sum(tally.flops for tally in tallies)
        self.accelerators |= {tally.accelerator for tally in tallies} - {""}
        return tallies
