"""Read a source into a pool, canonical and memory-mapped: the first stage of every task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tldr.data.base import Reader
from tldr.data.pool import Pool, Verify, read_pool
from tldr.data.quarantine import write_quarantine
from tldr.ledger import Ledger
from tldr.pairs import Pairs

_READ: dict[tuple[object, ...], Pool] = {}  # by the jobs of the sweep that this process runs


def open_pool(
    data: Reader,
    *,
    verify: Verify,
    max_bad_fraction: float,
    cache: Path,
    folder: Path,
    ledger: Ledger,
    sweep: bool = False,
) -> Pool:
    """What ``data`` reads, its pairs memory-mapped from ``cache/pools/<hash>``; what cannot be read goes into
    ``folder/quarantine.parquet``. The jobs of a ``sweep`` in one process read a source once: whether its pictures are
    as they were is not asked again."""
    asked = (data.made_with, verify, max_bad_fraction, cache.absolute())
    with ledger.stage("read") as stage:
        if sweep and asked in _READ:
            found, stage.cached = _READ[asked], True
            write_quarantine(found.quarantine, folder, refused=False)
        else:
            found = read_pool(data, verify=verify, max_bad_fraction=max_bad_fraction, cache=cache, quarantine_to=folder)
            stage.images, stage.cached = found.decoded, verify == "decode" and not found.decoded
            kept = found.pairs.write(cache / "pools" / found.pairs.hash)
            found = replace(found, pairs=Pairs.open(kept))
            if sweep:
                _READ[asked] = found
    print(found.summary())
    return found
