"""Which runs a comparison consists of: its configuration, checked and written out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ALL = {"full": [], "full_refined": ["refined"]}  # controls without compression
CONTROLS = ("full", "full_refined", "random", "oracle", "longest", "oracle_longest", "tldr_length_bins")
NOTHING_REMOVED = 1e-12  # select.py wants a share inside (0, 1); of no pool is this one pair


@dataclass(frozen=True)
class Method:
    """A selection to make: ``selector`` of conf/selector, and further ``overrides`` of select.py."""

    name: str
    selector: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Learner:
    """What is trained on the selections: ``model`` of conf/model, and further ``overrides`` of train.py."""

    name: str
    model: str
    overrides: tuple[str, ...]
    batch_size: int


@dataclass(frozen=True)
class Budget:
    """How long: ``steps``, or ``epochs`` of the pairs that are left."""

    name: str
    steps: int | None
    epochs: float | None

    def of(self, pairs: int, batch_size: int) -> int:
        """Optimiser steps for so many pairs."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * pairs / batch_size))


@dataclass(frozen=True)
class Run:
    """One training and its evaluation. All pairs have compression 0."""

    method: Method
    compression: float
    seed: int
    learner: Learner
    budget: Budget

    def __str__(self) -> str:
        return f"{self.method.name}-c{self.compression:g}-s{self.seed}-{self.learner.name}-{self.budget.name}"


def plan(cfg: dict[str, Any], conf: Path) -> list[Run]:
    """The runs, those of one seed together. Raises ValueError naming the key of what cannot be."""
    for ratio in cfg["compressions"]:
        if not 0 < ratio < 1:
            raise ValueError(f"compressions={cfg['compressions']}: each is the share removed, inside (0, 1)")
    if not cfg["seeds"] or not cfg["compressions"]:
        raise ValueError("seeds and compressions want one value at least")
    methods, learners, budgets = methods_of(cfg, conf), learners_of(cfg, conf), budgets_of(cfg)
    return [
        Run(method, ratio, seed, learner, budget)
        for seed in cfg["seeds"]
        for budget in budgets
        for learner in learners
        for number, compression in enumerate(cfg["compressions"])
        for method in methods
        for ratio in ([compression] if method.name not in ALL else [0.0] if number == 0 else [])
    ]


def methods_of(cfg: dict[str, Any], conf: Path) -> list[Method]:
    """The controls, then the selectors, each once."""
    strange = set(cfg["controls"]) - set(CONTROLS)
    if strange:
        raise ValueError(f"controls has {', '.join(sorted(strange))}; choose from {', '.join(CONTROLS)}")
    given = [_entry(entry, "selector") for entry in cfg["selectors"]]
    named = {name: Method(name, selector, overrides) for name, selector, overrides, _ in given}
    if len(named) < len(given):
        raise ValueError("selectors has a name twice; give one of them another: {name: mine, selector: tldr}")
    if taken := (named.keys() & set(CONTROLS)) - {"random"}:
        raise ValueError(f"selectors has {', '.join(taken)}, which is a control's name")
    for method in named.values():
        _known(conf / "selector", method.selector, "selectors")
    found = []
    for name in cfg["controls"]:
        if name == "tldr_length_bins":
            found.append(Method(name, "tldr", named["tldr"].overrides if "tldr" in named else ()))
        elif name not in named:
            found.append(Method(name, "random", tuple(cfg["refined"]) if name == "full_refined" else ()))
    return [*found, *named.values()]


def learners_of(cfg: dict[str, Any], conf: Path) -> list[Learner]:
    """The models."""
    found = []
    for entry in cfg["models"]:
        name, model, overrides, more = _entry(entry, "model")
        _known(conf / "model", model, "models")
        found.append(Learner(name, model, overrides, int(more.get("batch_size", cfg["batch_size"]))))
    if len({learner.name for learner in found}) < len(found):
        raise ValueError("models has a name twice; give one of them another: {name: wide, model: clip, overrides: []}")
    return found


def budgets_of(cfg: dict[str, Any]) -> list[Budget]:
    """The budgets that are not null."""
    found = []
    for name, value in cfg["budgets"].items():
        if value is None:
            continue
        epochs = re.fullmatch(r"(\d+(?:\.\d+)?) epochs?", str(value))
        if epochs is None and not (isinstance(value, int) and value > 0):
            raise ValueError(f"budgets.{name}={value}; give a number of steps, or '4 epochs'")
        found.append(Budget(name, None if epochs else value, float(epochs[1]) if epochs else None))
    return found


def pool_of(cfg: dict[str, Any], conf: Path) -> tuple[list[str], list[str]]:
    """The overrides that name the pool, and what its models are evaluated on."""
    data, more = cfg["data"], list(cfg["overrides"]["data"])
    _known(conf / "data", data, "data")
    keys = OmegaConf.load(conf / "data" / f"{data}.yaml")
    sizes = [f"data.{key}={cfg[key]}" for key in ("size", "eval_images") if key in keys]
    pool = [f"data={data}", *(["data.split=train"] if data == "flickr8k" else sizes), *more]
    if cfg["evaluated"] is not None:
        return pool, list(cfg["evaluated"])
    if data == "flickr8k":
        return pool, [f"data={data}", "data.split=test", *more]
    if not (conf / "data" / f"{data}_eval.yaml").is_file():
        raise ValueError(
            f"data={data} has no {data}_eval beside it; name what to evaluate on, each override in quotes: "
            f'\'evaluated=["data={data}","data.annotations=held_out.json"]\''
        )
    return pool, [f"data={data}_eval", *sizes, *more]


@cache  # every run asks for it, several times
def options_of(folder: Path, name: str) -> dict[str, Any]:
    """What the YAML of that name gives, unless it is overridden."""
    found: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    return {key: value for key, value in found.items() if key != "_target_"}


def digest(*parts: Any) -> str:
    """Eight hex digits that stand for ``parts``."""
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=4).hexdigest()


def _entry(entry: Any, kind: str) -> tuple[str, str, tuple[str, ...], dict[str, Any]]:
    """name, selector or model, overrides, what else is told."""
    if isinstance(entry, str):
        return entry, entry, (), {}
    known = {"name", kind, "overrides", *(["batch_size"] if kind == "model" else [])}
    if not isinstance(entry, dict) or "name" not in entry or not set(entry) <= known:
        raise ValueError(f"{kind}s has {entry!r}; give a name, or a mapping of {', '.join(sorted(known))}")
    return entry["name"], entry.get(kind, entry["name"]), tuple(entry.get("overrides", ())), entry


def _known(folder: Path, name: str, key: str) -> None:
    if not (folder / f"{name}.yaml").is_file():
        choices: Sequence[str] = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ValueError(f"{key} has {name!r}; choose from {', '.join(choices)}")
