"""The model that scores a pool: a checkpoint that is given, or a captioner trained on the pool itself (the paper's
step 1), once: what was trained for the same pool in the same way before is taken from the cache; what was killed while
training goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.loggers import Logger
from tqdm import tqdm

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.ledger import Ledger
from tldr.model.base import Model, load_model
from tldr.pairs import Pairs
from tldr.signal.extract import extract, fingerprint
from tldr.signal.store import Signals
from tldr.tasks.fit import fit
from tldr.tasks.resume import LAST


def pick_device(device: str) -> torch.device:
    """``auto``: the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def find_scorer(
    pool: Pairs,
    *,
    checkpoint: str | Path | None,
    model: partial[Model],
    trainer: Callable[..., L.Trainer],
    training: Mapping[str, Any],
    seed: int,
    cache: Path,
    ledger: Ledger,
    logger: Logger | None,
    callbacks: Sequence[L.Callback] = (),
) -> tuple[Model, Path]:
    """The scorer and its checkpoint. ``training`` holds `fit`'s arguments: max_steps, batch_size, ..."""
    if checkpoint is not None:
        return load_model(checkpoint), Path(checkpoint)
    recipe = [model.func.__qualname__, model.keywords, {**training, "checkpoint_every": 0}, seed, pool.hash]
    key = hashlib.blake2b(json.dumps(recipe, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    folder = cache / "scorers" / key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"), ledger.stage("scorer") as stage:  # jobs of a sweep wait for the one that trains
        file = folder / "model.ckpt"
        stage.cached = file.is_file()
        if not stage.cached:
            print(f"no checkpoint given: training {model.func.__name__} on {len(pool)} pairs, once, into {folder}")
            _, file = fit(
                pool, model=model, trainer=trainer, folder=folder, seed=seed, logger=logger, callbacks=callbacks,
                resume=(folder / LAST).exists(), identity={"scorer": key}, **training)  # fmt: skip
            stage.images = int(training["max_steps"]) * int(training["batch_size"])
    return load_model(file), file


def score(pool: Pairs, model: Model, *, cache: Path, ledger: Ledger, batch_size: int, num_workers: int) -> Signals:
    """The scorer's signals for the pool, computed where they are not yet in the cache."""
    folder = cache / "signals" / pool.hash / fingerprint(model)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"), ledger.stage("signals") as stage:
        missing = len(Signals(folder, len(pool)).missing())
        stage.cached = missing == 0
        stage.images = 0 if stage.cached else len(pool)
        return extract(pool, model, folder=folder, batch_size=batch_size, num_workers=num_workers)  # pyright: ignore


class CaptionWriter:
    """A captioner as refiners use it: writes captions in batches, and says how well captions fit."""

    def __init__(
        self, model: Model, *, batch_size: int, num_workers: int, seed: int, generation: Mapping[str, Any]
    ) -> None:
        if not hasattr(model, "generate") or not hasattr(model, "signals"):
            raise ValueError(
                f"{type(model).__name__} writes no captions; give a captioner's checkpoint=... or choose refiner=none"
            )
        self.model: Any = model
        self.loading = {"batch_size": batch_size, "num_workers": num_workers}
        self.seed, self.generation = seed, dict(generation)

    def _batches(self, pairs: Pairs, title: str) -> Any:
        dataset = PairsDataset(pairs, image_size=self.model.image_size)
        with tqdm(total=len(pairs), desc=title, unit="pair") as bar:
            for batch in ordered_loader(dataset, **self.loading):
                batch["images"] = batch["images"].to(self.model.device)
                yield batch
                bar.update(len(batch["captions"]))

    def write(self, pairs: Pairs) -> list[str]:
        """A caption for each pair's picture; the draws depend on the seed alone."""
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        captions: list[str] = []
        for batch in self._batches(pairs, "writing captions"):
            captions += self.model.generate(batch["images"], generator=generator, **self.generation)
        return captions

    def align(self, pairs: Pairs) -> np.ndarray:
        """(n,) alignment of each pair's caption with its picture."""
        batches = self._batches(pairs, "aligning captions")
        return np.concatenate([self.model.signals(batch)["alignment"].float().cpu().numpy() for batch in batches])
