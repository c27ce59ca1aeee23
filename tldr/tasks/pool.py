"""Read a source into a pool, canonical and memory-mapped: the first stage of every task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tldr.data.base import Reader
from tldr.data.pool import Pool, Verify, read_pool
from tldr.ledger import Ledger
from tldr.pairs import Pairs


def open_pool(
    data: Reader, *, verify: Verify, max_bad_fraction: float, cache: Path, folder: Path, ledger: Ledger
) -> Pool:
    """What ``data`` reads, its pairs memory-mapped from ``cache/pools/<hash>``; what cannot be read goes into
    ``folder/quarantine.parquet``."""
    with ledger.stage("read") as stage:
        found = read_pool(data, verify=verify, max_bad_fraction=max_bad_fraction, cache=cache, quarantine_to=folder)
        stage.images, stage.cached = found.decoded, found.decoded == 0
        kept = found.pairs.write(cache / "pools" / found.pairs.hash)
    print(found.summary())
    return replace(found, pairs=Pairs.open(kept))
