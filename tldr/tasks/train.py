"""Train a model on pairs for a fixed number of steps. The story of `train.py`, top to bottom."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

import tldr
from tldr.atomic import make_folder, write_json
from tldr.check import check_seed
from tldr.data.base import Reader
from tldr.data.pool import Verify
from tldr.evaluator.captioning import Captioning
from tldr.evaluator.classification import Classification
from tldr.evaluator.nlvr2 import Nlvr2
from tldr.evaluator.retrieval import Retrieval
from tldr.evaluator.vqa import Vqa
from tldr.ledger import Ledger
from tldr.model.base import Model, load_model
from tldr.pairs import Pairs, home_of
from tldr.report.captions import CaptionTable
from tldr.report.tracking import (
    artifact_name,
    begin,
    ends_its_run,
    finish,
    log_file_artifact,
    use_pairs_artifact,
)
from tldr.tasks.fit import fit
from tldr.tasks.pool import open_pool
from tldr.tasks.resume import find_finished, identity_of, requeued
from tldr.tasks.steps import plain_name

TASKS = {  # what to measure a model by: the first that it can do
    "retrieval": Retrieval, "captioning": Captioning, "nlvr2": Nlvr2, "vqa": Vqa, "classification": Classification,
}  # fmt: skip
EVALUATION = {"shapes": "shapes_eval", "cifar_scenes": "cifar_scenes_eval", "cifar10": "cifar10"}  # of the data


class ExportCheck(L.Callback):
    """Refuses a model that cannot be exported before its first step: as it was built, what it began from included."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises ValueError in the words of the export."""
        from tldr.hub.checkpoint import check_export  # here: who does not ask for it needs no transformers

        check_export(pl_module)


@ends_its_run
def run(
    *,
    data: Reader | None,
    model: partial[Model],
    trainer: Callable[..., L.Trainer],
    logger: Callable[..., Logger],
    names: Mapping[str, Any],
    max_steps: int,
    batch_size: int,
    seed: int,
    cache: str | Path,
    pairs: str | Path | None = None,
    out: str | Path | None = None,
    augment: str = "none",
    balance: float = 0.0,
    num_workers: int = 0,
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    verify: Verify = "decode",
    max_bad_fraction: float = 0.1,
    image_size: int | None = None,
    init_from: str | Path | Sequence[str | Path] | None = None,
    ema: float | None = None,
    compile: bool = False,
    export: bool | str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1000,
    caption_table_every: int = 500,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Train on ``pairs`` (a folder of `select.py`'s), or else on the pool that ``data`` reads; return the checkpoint.

    `tldr.tasks.fit` tells what the options do. ``export`` also writes a Hugging Face folder: True into ``huggingface``
    beside the checkpoint, or where it says; raises ValueError, before it trains, for a model that cannot be exported.
    With ``resume``, or in a job that SLURM has requeued, a run that was killed goes on, and one that has ended is left
    alone.
    """
    check_seed(seed)
    resume = resume or requeued()
    home, folder = folders(names, pairs=pairs, out=out, seed=seed)
    make_folder(folder, "out")
    ledger = Ledger()
    if pairs is not None:
        subset = Pairs.open(pairs)
    elif data is not None:
        subset = open_pool(
            data, verify=verify, max_bad_fraction=max_bad_fraction, cache=Path(cache), folder=folder, ledger=ledger
        ).pairs
    else:
        raise ValueError("there is nothing to train on: give pairs=, or data=")
    kind: Any = model.func
    columns = kind.columns_of(model.keywords) if hasattr(kind, "columns_of") else ()
    identity = identity_of(config or {}, "-".join(filter(None, [subset.hash, subset.digest(columns)])))
    finished = find_finished(folder, identity)  # another run's is not replaced
    if resume and finished:
        print(f"this run is already finished; there is nothing to resume\nwrote {finished}")
        if export:
            write_export(load_model(finished), folder, export)
        return finished
    of = origin(names, subset if pairs else None)
    recipe = names.get("experiment") or names["model"]
    title = "-".join([recipe, *home.parts[-2:], f"s{seed}"])
    title += "" if folder.name == f"{recipe}-s{seed}" else f"-{folder.name}"
    know_the_first(trainer)
    tracker = begin(logger, name=title, group=of["data"], resume=resume, job_type="train", save_dir=folder)
    tracker.log_hyperparams({**(config or {}), "subset": of})
    experiment: Any = tracker.experiment  # pyright: ignore[reportAttributeAccessIssue]  (every logger has one)
    used = Path(cache, "pools", subset.hash) if pairs is None else home
    use_pairs_artifact(experiment, subset, used, name=artifact_name(subset), type="subset" if pairs else "pool")

    callbacks: list[L.Callback] = [ExportCheck()] if export else []
    if hasattr(model.func, "generate"):
        callbacks.append(CaptionTable(every_n_steps=caption_table_every))
    with ledger.stage("train") as stage:
        module, checkpoint = fit(
            subset, model=model, trainer=trainer, folder=folder, max_steps=max_steps, batch_size=batch_size, seed=seed,
            augment=augment, balance=balance, num_workers=num_workers, tokenizer=tokenizer, vocab_size=vocab_size,
            image_size=image_size, init_from=init_from, ema=ema, compile=compile,
            resume=resume, checkpoint_every=checkpoint_every, identity=identity, logger=tracker,
            callbacks=callbacks, stage=stage,
        )  # fmt: skip
    if getattr(rank_zero_only, "rank", 0) != 0:  # the first process tells
        return checkpoint
    provenance = {
        "pairs": subset.hash, "count": len(subset), "steps": max_steps, "seed": seed, "version": tldr.__version__,
        "model": type(module).__name__, "subset": of, "identity": identity, "config": dict(config or {}),
    }  # fmt: skip
    write_json(folder / "provenance.json", provenance)
    ledger.write(folder)
    log_file_artifact(experiment, checkpoint, name=f"model-{title}", type="model", parent=subset.hash)
    finish(tracker, ledger)
    print(f"trained {type(module).__name__} for {max_steps} steps on {len(subset)} pairs in {ledger.seconds:.0f} s")
    print(f"wrote {checkpoint}")
    if export:
        write_export(module, folder, export)
    print(f"next: {next_command(module, folder, subset)}")
    return checkpoint


def refuse_processes(trainer: Callable[..., L.Trainer]) -> None:
    """Raises ValueError where ``trainer`` would start further processes by itself: each would begin the whole sweep
    (``-m``) again, instead of the job that it belongs to."""
    made: Any = trainer(max_steps=1, logger=False)
    environment = getattr(made.strategy, "cluster_environment", None)
    if made.world_size > 1 and environment is not None and not environment.creates_processes_externally:
        raise ValueError(
            f"-m and {made.world_size} processes on one machine: a sweep cannot start them; use one command per run, "
            "or one job per run: hydra/launcher=submitit_slurm"
        )


def know_the_first(trainer: Callable[..., L.Trainer]) -> None:
    """Before there is a Trainer, Lightning takes a process that no launcher has numbered for rank 0, on every machine,
    and each would start a run of the logger: give it the number of its machine."""
    machine = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))
    if getattr(trainer, "keywords", {}).get("num_nodes", 1) > 1 and machine and not getattr(rank_zero_only, "rank", 0):
        rank_zero_only.rank = machine  # pyright: ignore[reportFunctionMemberAccess]


def origin(names: Mapping[str, Any], subset: Pairs | None) -> dict[str, Any]:
    """What the pairs are: of which ``data``, and what a selection was asked for."""
    if subset is None:
        return {"data": names["data"]}
    told = subset.provenance
    known = {**told.get("names", {}), "compression": told.get("compression"), "seed": told.get("seed")}
    known.setdefault("data", told.get("data") or names["data"])
    return {key: value for key, value in known.items() if value is not None}


def folders(
    names: Mapping[str, Any], *, pairs: str | Path | None, out: str | Path | None, seed: int
) -> tuple[Path, Path]:
    """Where the pairs lie, and beside them where the run goes: named by its recipe or else its model."""
    home = Path("outputs", names["data"], "full") if pairs is None else home_of(pairs)
    run = f"{names.get('experiment') or names['model']}-s{seed}"
    return home, Path(out) if out else home / run / plain_name(names.get("overrides") or "")


def next_command(module: Model, folder: Path, pairs: Pairs) -> str:
    """How to measure the model: by the first of `TASKS` that it can do, on the evaluation data that belong to the
    ``pairs`` it was trained on, where we have such (a selection knows what data it is of)."""
    task = next((name for name, kind in TASKS.items() if not kind().lacks(module)), "...")
    told = pairs.provenance.get("names", pairs.provenance)  # a selection's, or a pool's own
    data = EVALUATION.get(told.get("data"), "...")
    return f"python evaluate.py checkpoint={folder} evaluator={task} data={data}"


def write_export(module: Model, folder: Path, export: bool | str | Path) -> None:
    """A Hugging Face folder of the model, which `transformers` opens."""
    from tldr.hub.checkpoint import export as write  # here: who does not ask for it needs no transformers

    print(f"wrote {write(module, folder / 'huggingface' if export is True else Path(str(export)))} for transformers")
