"""Reduce a pool: read, score, select, refine, write. The story of `select.py`, top to bottom."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.loggers import Logger

import tldr
from tldr.atomic import atomic_path, make_folder, write_json
from tldr.check import check_seed
from tldr.data.base import Reader
from tldr.data.export import check_formats, clear, export
from tldr.data.pool import Pool, Verify
from tldr.data.quarantine import write_quarantine
from tldr.engine import Engine
from tldr.ledger import Ledger
from tldr.model.base import Model
from tldr.pairs import Pairs
from tldr.refiner.base import Refiner
from tldr.report.captions import CaptionTable
from tldr.report.explain import explained
from tldr.report.made import write_made_report
from tldr.report.selection import write_report
from tldr.report.tracking import (
    artifact_name,
    begin,
    ends_its_run,
    finish,
    log_pairs_artifact,
    log_selection,
    use_pairs_artifact,
)
from tldr.selector.base import Maker, Selection, Selector, Target, check_compression, keep_count
from tldr.signal.panel import MAIN, WRITER, scorers_of
from tldr.signal.store import Signals
from tldr.tasks.pool import open_pool
from tldr.tasks.resume import flat
from tldr.tasks.scorer import TEACHES_NOTHING, Scorers, pick_device, refuse_several
from tldr.tasks.writer import CaptionWriter

# Of the configuration, what says which pairs are kept, and with what captions.
_DECISIVE = (
    "data", "selector", "refiner", "model", "checkpoint", "writer", "scorers", "training", "trainer", "generation",
    "batch_size", "verify", "max_bad_fraction",
)  # fmt: skip


@ends_its_run
def run(
    *,
    data: Reader,
    selector: Selector | Maker,
    refiner: Refiner,
    model: partial[Model],
    trainer: Callable[..., L.Trainer],
    engine: Engine,
    logger: Callable[..., Logger],
    names: Mapping[str, str],
    compression: float,
    seed: int,
    out: str | Path,
    cache: str | Path,
    checkpoint: str | None = None,
    writer: str | None = None,
    scorers: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any],
    generation: Mapping[str, Any],
    batch_size: int = 256,
    num_workers: int = 0,
    device: str = "auto",
    verify: Verify = "decode",
    max_bad_fraction: float = 0.1,
    exports: Sequence[str] = ("annotations",),
    report: bool = True,
    explain: str | Sequence[str] | None = None,
    caption_table_every: int = 200,
    sweep: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Pairs:
    """Write a reduced data set into ``out``; return it.

    ``model``, ``trainer`` and ``training`` make the scorer where ``checkpoint`` is None and the selector or refiner
    needs one; ``scorers`` does so for the other scorers, by the names that selectors use (`tldr.signal.panel`): each a
    ``model``, optionally ``checkpoint`` and what differs in ``training``. ``writer`` is the checkpoint of a captioner
    whose captions the refiner takes (the paper's step 4), None: the scorer's own. ``names`` says what the parts are
    called in the configuration: data, selector, refiner. ``engine`` has signals and captions computed, by several
    processes or machines if it is asked to. ``sweep``: this is one of several jobs (`open_pool`). With ``explain``,
    print what the finished selection in ``out`` tells of these uids, and return it."""
    folder, identity = Path(out), {"names": dict(names), "compression": compression, "seed": seed}
    config = dict(config or {})
    if explain is not None:
        said = explained(folder, explain, cache=cache)
        if other := _another(folder, identity, config):
            print(f"Of the selection that is in {folder}: {', '.join(other[:4])}{', ...' * (len(other) > 4)}")
        print(said)
        return Pairs.open(folder)
    check_compression(compression)
    check_seed(seed)
    check_formats(exports)
    refuse_several(trainer)
    placed = pick_device(device)
    selector.device = refiner.device = str(placed)
    if writer and not refiner.needs_writer:
        raise ValueError(f"writer={writer} writes captions for a refiner: add refiner=append, replace, best or capfilt")
    cache, ledger = Path(cache), Ledger()
    make_folder(folder, "out")
    if other := _another(folder, identity, config):
        raise ValueError(f"{folder} holds another selection ({', '.join(other)}); give another out=..., or remove it")
    title = f"{names['selector']}-c{compression}-s{seed}"
    title += "" if folder.name == title else f"-{folder.name}"
    tracker = begin(logger, name=title, group=names["data"], job_type="select", save_dir=folder)
    tracker.log_hyperparams(config)

    reading = {"verify": verify, "max_bad_fraction": max_bad_fraction, "cache": cache, "ledger": ledger, "sweep": sweep}
    found = open_pool(data, folder=folder, **reading)
    pool = found.pairs
    keep_count(len(pool), compression)  # none left should not cost a scorer's training first
    selector.check(pool)
    if not isinstance(selector, Maker):
        check_formats(exports, pool)

    signals, target = None, None
    needs = (*selector.needs, *refiner.needs)
    by = WRITER if writer else MAIN  # who writes for the refiner
    writing = ({by} if refiner.needs_writer else set()) | ({MAIN} if selector.needs_writer else set())
    extraction = {"batch_size": batch_size, "num_workers": num_workers, "engine": engine, "device": placed}
    if checkpoint and MAIN not in (asked := {*scorers_of(needs), *writing}):
        others = ", ".join(f"scorers.{name}.checkpoint=" for name in sorted(asked) if name != WRITER)
        print(
            f"checkpoint={checkpoint} is not used: it is the captioner's, which selector={names['selector']} does not "
            f"need{f'; its scorer is set by {others}' * bool(others)}"
        )
    judges = Scorers.find(
        pool, needs,
        {MAIN: {"model": model, "checkpoint": checkpoint}, WRITER: {"model": model, "checkpoint": writer},
         **(scorers or {})}, writing=writing, extraction=extraction,
        training=training, asked=selector.scorer_options, trainer=trainer, seed=seed, cache=cache, ledger=ledger,
        logger=tracker, callbacks=[CaptionTable(every_n_steps=caption_table_every)],
    )  # fmt: skip
    provenance: dict[str, Any] = {f"scorer {name}".strip(): str(file) for name, file in judges.files.items()}
    writers = {  # first: a scorer that cannot write should not cost an extraction
        name: CaptionWriter({**judges.models, MAIN: judges.models[name]}, **extraction, cache=cache, seed=seed,
                            generation=generation)
        for name in writing
    }  # fmt: skip
    if writing and verify != "decode" and not selector.needs:
        print(
            f"verify={verify}: a picture that cannot be decoded will stop the writing of captions; verify=decode would "
            "quarantine it first"
        )
    if selector.needs:
        signals = judges.signals(pool, selector.needs)
        found, signals = _without_undecodable(found, signals, folder, cache, max_bad_fraction)
        pool = found.pairs
    if selector.needs_target:
        aim = folder / "target"
        aimed = open_pool(selector.target, folder=aim, **reading)
        seen = None
        if selector.target_needs:
            seen = judges.signals(aimed.pairs, selector.target_needs)
            aimed, seen = _without_undecodable(aimed, seen, aim, cache, max_bad_fraction)
        target = Target(aimed.pairs, seen)
        provenance["target"] = aimed.pairs.hash

    keep = keep_count(len(pool), compression)
    provenance |= {"pool": pool.hash, **identity, "version": tldr.__version__}
    with ledger.stage("select") as stage:
        options = {"keep": keep, "seed": seed, "target": target, "writer": writers.get(MAIN)}
        if isinstance(selector, Maker):
            made = selector(pool, signals, **options, folder=folder)
            selection = Selection(np.empty(0, np.int64), made.reasons)
            subset = replace(made.pairs, provenance={**provenance, "parent": pool.hash})
        else:
            selection = selector(pool, signals, **options)
            subset = pool.take(selection.rows, provenance=provenance)
        if selector.needs_writer:
            writers[MAIN].charge(stage)
    if refiner.writes:
        with ledger.stage("refine") as stage:
            subset, stage.images = refiner(subset, writers.get(by)), len(subset)
            if refiner.needs_writer:
                writers[by].charge(stage)

    decisions = selection.decisions(pool)
    written = _write(folder, subset, decisions, provenance | {"hash": subset.hash, "config": config}, exports)
    facts = {"read": found.read, "quarantined": found.quarantine.num_rows, "pool": len(pool), "kept": len(subset),
             "compression": compression, "seconds": round(ledger.seconds, 1)}  # fmt: skip
    if report:
        with ledger.stage("report"):
            told: dict[str, Any] = {"title": f"{names['data']} reduced by {names['selector']}", "facts": facts}
            if isinstance(selector, Maker):
                written.append(write_made_report(folder, pool, subset, **told))
            else:
                written.append(write_report(folder, pool, decisions, refined=subset, **told))
    written.append(ledger.write(folder))
    _log(tracker, pool, subset, decisions, facts, folder, cache, ledger)

    did = "made" if isinstance(selector, Maker) else "kept"
    print(f"{did} {len(subset)} of {len(pool)} pairs (compression={compression}) with selector={names['selector']}")
    print(f"wrote {folder}/: {', '.join(path.name for path in written)}")
    print(f"next: python train.py model=blip pairs={folder}")
    return subset


def _another(folder: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Where ``folder`` already holds another selection (of an earlier job of a sweep with ``out=``, say): the options
    of that one which differ. Empty if it holds this one or none."""
    file = folder / "provenance.json"
    if not file.is_file():
        return []
    there = {"config": {}} | json.loads(file.read_text())
    asked = json.loads(json.dumps({**identity, "config": config}, default=str))

    def options(facts: Mapping[str, Any]) -> dict[str, Any]:
        told = {key: facts.get(key) for key in identity} | {key: facts["config"].get(key) for key in _DECISIVE}
        return {key: value for key, value in flat(told) if value != {}}  # an empty group is as good as none

    had, wants = options(there), options(asked)
    other = sorted(key for key in {*had, *wants} if had.get(key) != wants.get(key) and not _says_how(key))
    return [f"{key}={had.get(key)}" for key in other]


def _says_how(key: str) -> bool:
    """Is it of loading or of a Trainer, and moves no weight; or where something is computed?"""
    steps = key.split(".")
    taught = (name for group, name in pairwise(steps) if group in ("training", "trainer"))
    return steps[-1] == "device" or any(name in TEACHES_NOTHING for name in taught)


def _without_undecodable(
    found: Pool, signals: Signals, folder: Path, cache: Path, max_bad_fraction: float
) -> tuple[Pool, Signals]:
    """Quarantine the pairs whose pictures failed during extraction (a URL that has gone since, ``verify=exists``)."""
    pool, errors = found.pairs, signals.errors()
    if not errors:
        return found, signals
    bad = np.array(sorted(errors))
    failed = pool.table.take(pa.array(bad))
    late = pa.table(
        {
            "uid": failed["uid"],
            "image": failed["image"],
            "caption": failed["caption"].cast(pa.large_binary()),
            "stage": ["signals"] * len(bad),
            "error": [errors[int(row)] for row in bad],
        }
    ).cast(found.quarantine.schema)
    quarantine = pa.concat_tables([found.quarantine, late])
    share = quarantine.num_rows / found.read
    listed = write_quarantine(quarantine, folder, refused=share > max_bad_fraction)
    example = f"{late['uid'][0]}: {late['error'][0]}"
    print(f"{len(bad)} more pairs quarantined, whose pictures cannot be decoded, such as {example}")
    if share > max_bad_fraction:
        raise ValueError(
            f"{quarantine.num_rows} of {found.read} pairs ({share:.1%}) cannot be read, more than "
            f"max_bad_fraction={max_bad_fraction}; see {listed}, or raise max_bad_fraction"
        )
    good = np.setdiff1d(np.arange(len(pool)), bad)
    kept = pool.take(good, provenance=pool.provenance)
    kept = Pairs.open(kept.write(cache / "pools" / kept.hash))
    return replace(found, pairs=kept, quarantine=quarantine), signals.at(good)


def _write(
    folder: Path, subset: Pairs, decisions: pa.Table, provenance: Mapping[str, Any], exports: Sequence[str]
) -> list[Path]:
    before = folder / "provenance.json"
    if before.is_file() and json.loads(before.read_text()).get("hash") != subset.hash:
        clear(folder)
    written = [subset.write(folder)]
    with atomic_path(folder / "decisions.parquet") as temporary:
        pq.write_table(decisions, temporary)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    provenance = {**provenance, "written": now}
    written += [folder / "decisions.parquet", write_json(folder / "provenance.json", provenance)]
    return [*written, folder / "quarantine.parquet", *export(subset, folder, exports)]


def _log(
    tracker: Logger,
    pool: Pairs,
    subset: Pairs,
    decisions: pa.Table,
    facts: Mapping[str, Any],
    folder: Path,
    cache: Path,
    ledger: Ledger,
) -> None:
    experiment: Any = tracker.experiment  # pyright: ignore[reportAttributeAccessIssue]  (every logger has one)
    log_selection(experiment, pool, decisions, facts=facts)
    at = cache / "pools" / pool.hash
    use_pairs_artifact(experiment, pool, at, name=artifact_name(pool), type="pool")
    log_pairs_artifact(experiment, subset, folder, name=artifact_name(subset), type="subset", parent=pool.hash)
    finish(tracker, ledger)
