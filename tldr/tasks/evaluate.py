"""Measure checkpoints. The story of `evaluate.py`, top to bottom.

Every evaluator reads the split of the data that its task wants, and takes the first checkpoint that can do the task: a
pre-trained model and the heads fine-tuned from it make one table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from tldr.atomic import make_folder, write_json
from tldr.data.base import Reader
from tldr.data.images import ImageError, ImageStore
from tldr.data.pool import Verify
from tldr.evaluator.base import Evaluator
from tldr.ledger import Ledger
from tldr.model.base import Model
from tldr.pairs import Pairs, home_of
from tldr.report.tracking import begin, ends_its_run, finish, live_run
from tldr.tasks.begin import open_model
from tldr.tasks.pool import open_pool
from tldr.tasks.scorer import pick_device
from tldr.tasks.steps import plain_name

_SHOWN = 64  # records of an evaluator in its W&B table
_PICTURE = 256  # pixels of the longer side


@ends_its_run
def run(
    *,
    data: Reader,
    evaluator: Mapping[str, Evaluator],
    checkpoint: str | Path | Sequence[str | Path],
    logger: Callable[..., Logger],
    names: Mapping[str, str],
    cache: str | Path,
    model: Callable[..., Model] | None = None,
    pairs: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    verify: Verify = "decode",
    max_bad_fraction: float = 0.1,
    export: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """The metrics of every evaluator on ``pairs``, or on what ``data`` reads; they are also in ``evaluation-*.json``,
    and what the models said in ``evaluation-*-details.json``. ``export`` writes the (one) checkpoint as a Hugging Face
    folder. ``model`` opens the checkpoints that are not ours. Raises ValueError for an evaluator that can use none of
    them, perhaps because a published one lacks weights that it needs."""
    placed = pick_device(device)
    given = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    files = [file if (file := Path(path) / "model.ckpt").is_file() else Path(path) for path in given]
    if not files or (export is not None and len(files) > 1):
        raise ValueError(f"checkpoint={given}: give {'the one to export' if files else 'at least one'}")
    models = {file: open_model(file, model) for file in files}
    if export is not None:
        from tldr.hub.checkpoint import export as write_folder  # here: who does not export needs no safetensors

        print(f"wrote {write_folder(models[files[0]], Path(export))}")
    if not evaluator and export is None:
        raise ValueError("evaluator=[]: nothing to measure, and export=... names no folder to write")
    if not evaluator:
        return {}

    chosen = {name: choose(name, each, models) for name, each in evaluator.items()}
    if left := [given[files.index(file)] for file in files if file not in chosen.values()]:
        taken = ", ".join(f"{name}: {given[files.index(chosen[name])]}" for name in evaluator)
        print(
            f"each evaluator takes the first checkpoint that can do its task ({taken}); not measured: "
            f"{', '.join(map(str, left))}. Each by itself: python evaluate.py -m checkpoint={','.join(map(str, given))}"
        )
    home = home_of_checkpoint(files[0])
    folder = Path(out) if out else home
    make_folder(folder, "out")
    ledger = Ledger()
    if pairs is None:
        reading = {"verify": verify, "max_bad_fraction": max_bad_fraction, "cache": Path(cache), "ledger": ledger}
        measured, on = read(data, evaluator, folder, **reading), names["data"]
    else:
        measured, on = dict.fromkeys(evaluator, Pairs.open(pairs)), home_of(pairs).resolve().name
    for name, each in evaluator.items():
        each.check(models[chosen[name]], measured[name])  # all of them, before the first one spends an hour

    title = "-".join(evaluator)
    hashes = {name: found.hash for name, found in measured.items()}
    one = hashes[next(iter(hashes))] if len(set(hashes.values())) == 1 else hashes
    of = trained_on(home)
    called = f"{title}-{'-'.join(home.parts[-2:])}"
    tracker = begin(logger, name=called, group=of.get("data", names["data"]), job_type="evaluate", save_dir=folder)
    tracker.log_hyperparams({**(config or {}), "subset": of, "lineage/evaluated_on": one})
    asked = {
        "checkpoint": str(files[0]) if len(files) == 1 else [str(file) for file in files],
        "pairs": one,
        "options": (config or {}).get("evaluator", {}),
    }
    on = _free(folder, title, on, asked)

    numbers: dict[str, float] = {}
    told: dict[str, dict[str, Any]] = {}
    for name, each in evaluator.items():
        measuring = models[chosen[name]].to(placed)
        with ledger.stage(f"evaluate {name}" if len(evaluator) > 1 else "evaluate") as stage:
            stage.devices = int(measuring.device.type != "cpu")
            found = each(measuring, measured[name])
        numbers |= found
        told[name] = {"checkpoint": str(chosen[name]), "pairs": hashes[name], "metrics": list(found)}
        if each.details:
            part = "" if name == title else f"-{name}"
            details = write_json(folder / f"evaluation-{title}-{on}{part}-details.json", each.details)
            told[name]["details"] = str(details)
            log_details(tracker.experiment, name, each.details, measured[name].root)  # pyright: ignore

    tracker.log_metrics(numbers)
    finish(tracker, ledger)
    written = write_json(
        folder / f"evaluation-{title}-{on}.json",
        {
            **asked,
            "metrics": numbers,
            "evaluators": told,
            "ledger": list(map(vars, ledger.stages)),
        },
    )
    print(table(numbers, {key: given[files.index(chosen[name])] for name in told for key in told[name]["metrics"]}))
    for path in (*(each["details"] for each in told.values() if "details" in each), written):
        print(f"wrote {path}")
    return numbers


def home_of_checkpoint(file: Path) -> Path:
    """The folder for its metrics: its own, or for a Hugging Face id, one named after it."""
    if file.is_dir():
        return file
    return file.parent if file.is_file() else Path("outputs", plain_name(str(file)))


def trained_on(home: Path) -> dict[str, Any]:
    """The pairs (`tldr.tasks.train.origin`) that the model in ``home``, a folder written by `train.py`, was trained on;
    empty for other folders."""
    file = home / "provenance.json"
    return json.loads(file.read_text(encoding="utf-8")).get("subset", {}) if file.is_file() else {}


def _free(folder: Path, title: str, on: str, asked: Mapping[str, Any]) -> str:
    """The name to file metrics under: ``on``, with a hash where that name is taken by metrics of other pairs (another
    split, a subset of the same name), checkpoints or options."""
    file = folder / f"evaluation-{title}-{on}.json"
    wanted = json.dumps(asked, sort_keys=True, default=str)
    if file.is_file():
        there = json.loads(file.read_text(encoding="utf-8"))
        if {key: there.get(key) for key in asked} != json.loads(wanted):
            return f"{on}-{hashlib.blake2b(wanted.encode(), digest_size=4).hexdigest()}"
    return on


def choose(name: str, evaluator: Evaluator, models: Mapping[Path, Model]) -> Path:
    """The first checkpoint whose model the evaluator can measure. Raises ValueError saying what each one lacks."""
    lacking = {file: evaluator.lacks(model) for file, model in models.items()}
    for file, lack in lacking.items():
        if not lack:
            return file
    each = "; ".join(f"{type(models[file]).__name__} in {file} lacks {lack}" for file, lack in lacking.items())
    raise ValueError(f"evaluator={name} can measure none of the checkpoints: {each}")


def read(data: Reader, evaluator: Mapping[str, Evaluator], folder: Path, **reading: Any) -> dict[str, Pairs]:
    """The pairs of each evaluator: of the split for its task, read once. What cannot be read of the first split goes
    into ``folder/quarantine.parquet``, of others into ``folder/<task>/``."""
    opened: dict[int, Pairs] = {}
    readers: dict[str, Reader] = {}  # kept: an id stands for an object as long as that lives
    found = {}
    for name, each in evaluator.items():
        reader = readers.setdefault(each.task, data.for_task(each.task))
        if id(reader) not in opened:
            place = folder / each.task if opened else folder
            opened[id(reader)] = open_pool(reader, folder=place, **reading).pairs
        found[name] = opened[id(reader)]
    return found


def table(numbers: Mapping[str, float], sources: Mapping[str, str | Path]) -> str:
    """A line for every number; where several checkpoints were measured, also whose it is."""
    width = max(map(len, numbers))
    several = len(set(map(str, sources.values()))) > 1
    lines = []
    for name, value in numbers.items():
        shown = f"{value:8.2f}" if isinstance(value, float) else f"{value:8}"
        lines.append(f"{name:<{width}}  {shown}" + (f"  {sources[name]}" if several else ""))
    return "\n".join(lines)


def log_details(experiment: object, name: str, details: Sequence[Mapping[str, Any]], root: str) -> None:
    """A W&B table of records in equal steps, each with its picture."""
    run = live_run(experiment)
    if run is None:
        return
    import wandb

    store = ImageStore(root)
    columns = list(details[0])
    rows = []
    for record in details[:: -(-len(details) // _SHOWN)]:
        cells = [value if isinstance(value, int | float | str) else str(value) for value in map(record.get, columns)]
        try:
            picture = store.load(record["image"])
            picture.thumbnail((_PICTURE, _PICTURE))
            rows.append([wandb.Image(picture, file_type="jpg"), *cells])
        except ImageError:
            rows.append([None, *cells])
    run.log({f"details/{name}": wandb.Table(columns=["picture", *columns], data=rows)})
