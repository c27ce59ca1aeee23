"""Ask a model about every pair of a pool, part by part, and store what it says (`tldr.signal.store`).

A killed run loses the part it was at, no more; run again it leaves the same bytes as an undisturbed one, because a
part's rows, batches and transform (evaluation: no crop, no flip) depend on nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from tldr.data.loading import Batch, PairsDataset, Viewer, ordered_loader
from tldr.ledger import Meter
from tldr.pairs import Pairs
from tldr.signal.store import Signals, parts_of

# How signals are stored; any other that a model gives is stored as float32.
DTYPES: Mapping[str, Any] = {"codes": np.uint16, "embedding": np.float16, "text_embedding": np.float16,
                             "alignment": np.float32, "tokens": np.uint16}  # fmt: skip


Tick = Callable[[int], Any]  # called after every batch with the number of its pairs


class Scorer(Viewer, Protocol):
    """A model that has something to say about pairs."""

    @property
    def device(self) -> Any:
        """Where it computes."""
        ...

    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """(B, ...) values by name."""
        ...

    def constants(self) -> dict[str, Tensor]:
        """Arrays that belong to the model, such as its codebook."""
        ...


def extract(
    pool: Pairs,
    model: Scorer,
    *,
    folder: str | Path,
    batch_size: int = 256,
    num_workers: int = 0,
    parts: Sequence[int] | None = None,
    dataset: PairsDataset | None = None,
    meter: Meter | None = None,
    tick: Tick = lambda _: None,
) -> Signals:
    """Compute what is missing of ``model``'s signals for ``pool`` in ``folder``; return them.

    ``parts`` restricts the work to some of the parts, for several processes or machines that share ``folder``;
    ``dataset`` is what `shown` makes of the pool, for callers that ask for parts repeatedly; ``meter`` counts the work.
    """
    signals = Signals(folder, len(pool))
    todo = signals.missing(parts)
    if not todo:
        return signals
    for name, value in model.constants().items():
        signals.write_constant(name, value.detach().float().cpu().numpy())
    dataset = dataset or shown(pool, model)
    loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    loading |= {"device": model.device, "meter": meter or Meter(batches=0), "tick": tick}
    rows = parts_of(len(pool))
    for number in todo:
        found: dict[str, list[np.ndarray]] = {}
        errors: dict[int, str] = {}
        for batch in batches_of(dataset, rows[number], **loading):
            errors.update(zip(batch["rows"].tolist(), batch["errors"], strict=True))
            for name, value in model.signals(batch).items():
                found.setdefault(name, []).append(value.float().cpu().numpy().astype(DTYPES.get(name, np.float32)))
        arrays = {name: np.concatenate(pieces) for name, pieces in found.items()}
        signals.write_part(number, arrays, {row: why for row, why in errors.items() if why})
    return signals


def batches_of(
    dataset: PairsDataset,
    rows: Sequence[int],
    *,
    device: torch.device,
    meter: Meter,
    tick: Tick = lambda _: None,
    **loading: int,
) -> Iterator[Batch]:
    """``rows`` in batches whose pictures are on ``device``; ``meter`` counts the work that the caller does on each.
    ``loading`` are batch_size and num_workers."""
    for batch in ordered_loader(Subset(dataset, rows), **loading):
        batch["images"] = batch["images"].to(device)
        with meter.batch(len(batch["captions"])):
            yield batch
        tick(len(batch["captions"]))


def shown(pool: Pairs, model: Scorer) -> PairsDataset:
    """The pool as ``model`` sees it, with the columns that it reads; what cannot be decoded is black, and says so."""
    return PairsDataset.seen_by(model, pool, tolerant=True, columns=getattr(model, "columns", ()))


@torch.no_grad()
def fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits that name a model by its class, arguments (its tokenizer is one), weights and buffers.

    Two equal models share their signals."""
    digest = hashlib.blake2b(type(model).__qualname__.encode(), digest_size=8)
    digest.update(json.dumps(dict(getattr(model, "hparams", {})), sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
