"""The models that score a pool: checkpoints that are given, or models trained on the pool itself (the paper's step 1),
once: what was trained for the same pool in the same way before is taken from the cache; what was killed while training
goes on. One that finds many captions wrong learns again, from the pairs that it believes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.loggers import Logger

from tldr.check import check_number
from tldr.engine import Engine
from tldr.ledger import Ledger, cost_of
from tldr.model.base import Model, load_model
from tldr.pairs import Pairs
from tldr.report.tracking import part_of
from tldr.signal.extract import fingerprint
from tldr.signal.panel import MAIN, Panel, scorers_of, signals_of
from tldr.signal.store import Signals
from tldr.tasks.begin import open_model
from tldr.tasks.fit import fit
from tldr.tasks.resume import BEGINNINGS, LAST, contents_of
from tldr.tasks.spread import Scoring

# Settings of data loading and of the Trainer that affect how training runs, but not what is learned.
HOW_FAST = (
    "num_workers", "checkpoint_every", "accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar",
    "enable_model_summary", "enable_checkpointing",
)  # fmt: skip
# More of these. They are not in HOW_FAST, because that is part of every scorer's digest: a longer one would invalidate
# all cached scorers.
TEACHES_NOTHING = frozenset({*HOW_FAST, "max_time", "log_every_n_steps"})
ROUNDS = 3  # of training a scorer, at most


def pick_device(device: str) -> torch.device:
    """``auto``: the GPU where there is one. Raises ValueError for what torch does not know or see."""
    gpu = torch.cuda.is_available()
    try:
        chosen = torch.device(("cuda" if gpu else "cpu") if device == "auto" else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r}; choose from auto, cpu, cuda, or one GPU such as cuda:1") from error
    if chosen.type == "cuda" and not (gpu and (chosen.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"device={device}: torch sees {torch.cuda.device_count() if gpu else 0} GPUs; use device=cpu")
    return chosen


def refuse_several(trainer: Callable[..., L.Trainer]) -> None:
    """Raises ValueError where ``trainer`` would train in several processes: the others would wait for the cache's lock,
    which the one that trains holds, and it for them."""
    if (number := trainer(max_steps=1, logger=False).world_size) > 1:
        raise ValueError(
            f"select.py trains its scorers in one process, but this trainer has {number}: use trainer=default, or "
            "train the scorer with `python train.py model=vqvlm balance=0.5 trainer=ddp ...` and give select.py its "
            "folder as checkpoint=..."
        )


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
    name: str = MAIN,
    turn: str = "",
) -> tuple[Model, Path]:
    """The scorer and its checkpoint: one of ours, or one that ``model`` can be initialised from (`tldr.tasks.begin`).

    ``training`` holds `fit`'s arguments: max_steps, batch_size, ...; ``name`` is what selectors call the scorer, and
    ``turn`` tells its rounds apart in ledger and log."""
    if checkpoint is not None:
        return open_model(checkpoint, model), Path(checkpoint)
    kind: Any = model.func
    columns = kind.columns_of(model.keywords)
    how = {key: value for key, value in getattr(trainer, "keywords", {}).items() if key not in TEACHES_NOTHING}
    recipe = [kind.__qualname__, model.keywords, {**training, **dict.fromkeys(HOW_FAST, 0)}, how, seed, pool.seen]
    recipe += filter(None, [pool.digest(columns), *(contents_of(training.get(key)) for key in BEGINNINGS)])
    digest = hashlib.blake2b(json.dumps(recipe, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    folder = cache / "scorers" / digest
    folder.mkdir(parents=True, exist_ok=True)
    # Jobs of a sweep wait for the one that trains.
    called = f"{name} {turn}".strip()
    with FileLock(folder / "lock"), ledger.stage(f"scorer {called}".strip(), home=folder) as stage:
        file = folder / "model.ckpt"
        stage.cached = file.is_file()
        if not stage.cached:
            print(f"no {_key(name)} given: training {model.func.__name__} on {len(pool)} pairs, once, into {folder}")
            told = None if logger is None else part_of(logger, called)
            _, file = fit(
                pool, model=model, trainer=trainer, folder=folder, seed=seed, logger=told, callbacks=callbacks,
                resume=(folder / LAST).exists(), identity={"scorer": digest}, stage=stage,
                **training)  # fmt: skip
    return load_model(file), file


def find_sure_scorer(
    pool: Pairs, *, again_above: float, extraction: Mapping[str, Any], cache: Path, ledger: Ledger, **recipe: Any
) -> tuple[Model, Path]:
    """`find_scorer`, and where it has found more than ``again_above`` of the captions wrong (`Model.wrong_share`), a
    second scorer: same recipe, trained from scratch on the pairs with the highest alignment by the first, as many as
    the first believes, if they fill a batch; `ROUNDS` in all. ``extraction`` holds `score`'s arguments.

    A model trained on wrong captions memorises some and then believes them; the next one has not seen most of them.
    Selecting training pairs by the loss of a trained model is from co-teaching (Han et al. 2018, arXiv 1804.06872) and
    related work, doing so in rounds from Shen and Sanghavi 2019 (arXiv 1810.11874)."""
    learn = partial(find_scorer, **recipe, cache=cache, ledger=ledger)
    model, file = learn(pool)
    if recipe["checkpoint"] is not None:
        return model, file
    share = 1.0
    for number in range(1, ROUNDS):
        wrong = model.wrong_share
        if wrong is None or wrong <= again_above:
            break
        share *= 1 - wrong
        keep = round(share * len(pool))
        if keep < recipe["training"]["batch_size"]:
            break
        print(
            f"{type(model).__name__} has found {wrong:.0%} of the captions wrong, more than "
            f"training.again_above={again_above}: another learns from the {keep} pairs that fit best"
        )
        judged = f"{recipe['name']} round-{number}".strip()
        said = score(pool, model, cache=cache, ledger=ledger, name=judged, **extraction)
        fit = said["alignment"].read()
        fit[list(said.errors())] = -np.inf  # of a picture that could not be decoded it says nothing
        believed = np.sort(np.argsort(-fit, kind="stable")[:keep])
        model, file = learn(pool.take(believed), turn=f"round-{number + 1}")
    return model, file


def refuse_chance(model: Model, signals: Iterable[str], key: str) -> None:
    """Raises ValueError where the ``signals`` of ``model``, the checkpoint of ``key``, would depend on untrained
    weights: a published checkpoint may lack a head, another project's captioner the null picture and a codebook."""
    if lacking := model.unlearned(signals):
        told = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ValueError(
            f"{key} lacks {told}, needed for {', '.join(sorted(signals))}: untrained weights would decide. Train it "
            f"first (python train.py model=... init_from=... balance=0.5), and give the result as {key}"
        )


def _key(name: str) -> str:
    """Where the checkpoint of the scorer ``name`` is asked for."""
    return f"scorers.{name}.checkpoint" if name else "checkpoint"


def score(
    pool: Pairs,
    model: Model,
    *,
    cache: Path,
    engine: Engine,
    device: torch.device,
    ledger: Ledger,
    name: str = MAIN,
    **loading: int,
) -> Signals:
    """The signals for the pool by the scorer ``name``, computed by ``engine`` on ``device`` where they are not yet in
    the cache; ``loading`` are batch_size and num_workers."""
    read = pool.digest(model.columns)  # labels, of the same pictures, may be others
    folder = cache / "signals" / pool.seen / "-".join(filter(None, [fingerprint(model), read]))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"), ledger.stage(f"signals {name}".strip(), home=folder) as stage:
        signals = Signals(folder, len(pool))
        missing = signals.missing()
        stage.cached = not missing
        for number in set(range(signals.parts)).difference(missing) if missing else ():
            stage.add_found(cost_of(signals.part(number)))
        task = Scoring.of(model, pool, cache, folder=folder.resolve(), **loading)
        tallies = task.run(engine, missing, device=device, title="extracting signals")
        stage.images, stage.flops = sum(tally.rows for tally in tallies), sum(tally.flops for tally in tallies)
        stage.devices = len({tally.accelerator for tally in tallies} - {""})
    return signals


class Scorers:
    """The models that a selection asks, by the names that selectors call them (`tldr.signal.panel`); ``extraction``
    has `score`'s further arguments."""

    def __init__(self, models: Mapping[str, Model], files: Mapping[str, Path], **extraction: Any) -> None:
        self.models, self.files, self.extraction = dict(models), dict(files), extraction

    @classmethod
    def find(
        cls,
        pool: Pairs,
        needs: Sequence[str],
        recipes: Mapping[str, Mapping[str, Any]],
        *,
        writing: Iterable[str] = (),
        extraction: Mapping[str, Any],
        training: Mapping[str, Any],
        asked: Mapping[str, Mapping[str, Any]],
        callbacks: Sequence[L.Callback] = (),
        **options: Any,
    ) -> Scorers:
        """Get the scorers that give the signals ``needs``, and those that write captions (``writing``). Each of
        ``recipes`` has `find_scorer`'s model, and optionally its checkpoint and what differs from ``training``;
        ``asked`` has the model arguments that the selector requires. ``callbacks`` watch the main scorer. Raises
        ValueError for a name without a recipe, a checkpoint made with arguments other than those required, and a model
        that does not give the signals needed."""
        models: dict[str, Model] = {}
        files: dict[str, Path] = {}
        names = {*scorers_of(needs), *writing}
        if unknown := sorted(names.difference(recipes)):
            raise ValueError(f"no scorer is called {unknown[0]!r}: add it to scorers, beside {', '.join(recipes)}")
        # What is given first: a wrong path should not cost the training of another.
        for name in sorted(names, key=lambda name: (not recipes[name].get("checkpoint"), name)):
            recipe = {"checkpoint": None, **recipes[name]}
            recipe["training"] = {**training, **recipe.get("training", {})}
            seed = recipe["training"].pop("seed", None)
            above = recipe["training"].pop("again_above", 1.0)
            check_number("training.again_above", above, "a share of wrong captions, from 0 to 1 (never)", low=0, high=1)
            own = options if seed is None else {**options, "seed": seed}
            watch = callbacks if name == MAIN else ()
            if name in asked:
                recipe["model"] = partial(recipe["model"].func, **{**recipe["model"].keywords, **asked[name]})
            wanted = signals_of(name, needs)
            gives = _gives(recipe["model"])
            if not recipe["checkpoint"] and gives and (missing := sorted(set(wanted).difference(gives))):
                raise ValueError(_not_given(name, recipe["model"].func.__name__, missing, gives))
            model, files[name] = find_sure_scorer(
                pool, **recipe, **own, callbacks=watch, name=name, again_above=above, extraction=extraction
            )
            refuse_chance(model, wanted, _key(name))
            for key, value in asked.get(name, {}).items():
                if (has := getattr(model, key)) != value:
                    raise ValueError(
                        f"scorers.{name}.checkpoint={files[name]} has {key}={has}, but the selector needs {value}"
                    )
            models[name] = model
        return cls(models, files, cache=options["cache"], ledger=options["ledger"], **extraction)

    def signals(self, pairs: Pairs, needs: Sequence[str]) -> Panel:
        """What those say that are asked. Raises ValueError where one does not give what is needed."""
        asked = scorers_of(needs)
        panel = Panel({name: score(pairs, self.models[name], name=name, **self.extraction) for name in asked})
        for name in asked:
            given = signals_of(name, panel)
            if missing := [need for need in signals_of(name, needs) if need not in given]:
                raise ValueError(_not_given(name, type(self.models[name]).__name__, missing, given))
        return panel


def _gives(model: partial[Model]) -> tuple[str, ...]:
    kind: Any = model.func
    return kind.signals_of(model.keywords) if hasattr(kind, "signals_of") else ()


def _not_given(name: str, kind: str, missing: Iterable[str], given: Iterable[str]) -> str:
    """What is told where a scorer is of another kind."""
    remedy = f"give another {_key(name)}=..."
    if not name:
        remedy = "take model=vqvlm, a VQ-VLM's checkpoint=..., or, if codes are missing, selector.feature=embedding"
    lacks = f"the selector needs {', '.join(missing)}, which a {kind} does not give"
    return f"{lacks} (it gives {', '.join(given)}); {remedy}"
