"""The project's commands, run in this process: what every benchmark that trains something is made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tldr.data.pool import read_pool
from tldr.pairs import Pairs
from tldr.tasks import evaluate, select, train
from tldr.tasks.steps import named_steps, selection_folder

CONF = Path(__file__).resolve().parents[1] / "conf"
TASKS: dict[str, Any] = {"select": select.run, "train": train.run, "evaluate": evaluate.run}


def command(script: str, *overrides: str, **changed: Callable[[Any], Any]) -> tuple[Any, float]:
    """Do what ``python script.py overrides`` does; the result, and the seconds it took. ``changed`` replaces arguments
    of the task: ``selector=Control`` wraps the selector."""
    print(f"\n$ python {script}.py {' '.join(overrides)}", flush=True)
    given, plain = arguments(script, *overrides)
    given |= {name: change(given[name]) for name, change in changed.items()}
    start = time.perf_counter()
    result = TASKS[script](**given, config=plain)
    return result, time.perf_counter() - start


def arguments(script: str, *overrides: str) -> tuple[dict[str, Any], Any]:
    """What ``python script.py overrides`` gives its task, and the configuration as plain values."""
    cfg = composed(script, *overrides)
    HydraConfig.instance().set_config(cfg)
    config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config._set_parent(cfg)  # pyright: ignore[reportPrivateUsage]
    plain: Any = OmegaConf.to_container(config, resolve=True)
    if script == "select":
        plain["selector"] = named_steps(plain["selector"], CONF / "selector", _load)
        plain["out"] = selection_folder(plain, cfg.hydra)
    return instantiate(plain, _convert_="all"), plain


def _load(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file), resolve=True)


def read(*overrides: str) -> Pairs:
    """The pairs that the scripts would read for ``data=...``, their pictures not looked at."""
    return read_pool(instantiate(composed("train", *overrides).data), verify="none").pairs


def parted(pairs: Pairs, *counts: int) -> list[Pairs]:
    """For each of ``counts``, that many pairs, equally many of each label; parts are disjoint, and always the same."""
    labels, rng = pairs.column("label"), np.random.default_rng(0)
    orders = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    ends = np.cumsum([0, *(count // len(orders) for count in counts)])
    if ends[-1] > min(map(len, orders)):
        raise SystemExit(f"there are not {sum(counts)} pictures in {len(pairs)}, as many of each class; lower --size")
    return [pairs.take(np.concatenate([order[a:b] for order in orders])) for a, b in pairwise(ends)]


def composed(script: str, *overrides: str) -> DictConfig:
    """The configuration of a script, with Hydra's own."""
    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(str(CONF), version_base="1.3")
    return compose(script, overrides=list(overrides), return_hydra_config=True)
