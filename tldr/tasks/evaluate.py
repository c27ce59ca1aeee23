"""Measure a checkpoint. The story of `evaluate.py`, top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from tldr.atomic import write_json
from tldr.data.base import Reader
from tldr.data.pool import Verify
from tldr.evaluator.base import Evaluator
from tldr.ledger import Ledger
from tldr.model.base import load_model
from tldr.pairs import Pairs
from tldr.report.tracking import finish
from tldr.tasks.pool import open_pool
from tldr.tasks.scorer import pick_device


def run(
    *,
    data: Reader,
    evaluator: Evaluator,
    checkpoint: str | Path,
    logger: Callable[..., Logger],
    names: Mapping[str, str],
    cache: str | Path,
    pairs: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    verify: Verify = "decode",
    max_bad_fraction: float = 0.1,
    config: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """The evaluator's numbers for ``checkpoint`` on ``pairs`` or on what ``data`` reads, also in
    ``evaluation-*.json``."""
    file = Path(checkpoint) / "model.ckpt" if Path(checkpoint).is_dir() else Path(checkpoint)
    model = load_model(file).to(pick_device(device))
    folder = Path(out) if out else file.parent
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger()
    if pairs is None:
        found = open_pool(
            data, verify=verify, max_bad_fraction=max_bad_fraction, cache=Path(cache), folder=folder, ledger=ledger
        )
        measured, on = found.pairs, names["data"]
    else:
        measured, on = Pairs.open(pairs), Path(pairs).stem
    tracker = logger(name=f"{names['evaluator']}-{'-'.join(file.parts[-3:-1])}", job_type="evaluate", save_dir=folder)
    tracker.log_hyperparams({**(config or {}), "lineage/evaluated_on": measured.hash})

    with ledger.stage("evaluate"):
        numbers = evaluator(model, measured)

    tracker.log_metrics(numbers)
    finish(tracker)
    written = write_json(
        folder / f"evaluation-{names['evaluator']}-{on}.json",
        {"checkpoint": str(file), "pairs": measured.hash, "metrics": numbers, "ledger": list(map(vars, ledger.stages))},
    )
    width = max(map(len, numbers))
    for name, value in numbers.items():
        print(f"{name:<{width}}  {value:8.2f}" if isinstance(value, float) else f"{name:<{width}}  {value:8}")
    print(f"wrote {written}")
    return numbers
