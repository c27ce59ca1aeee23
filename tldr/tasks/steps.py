"""Turns what Hydra composed into what a task takes: refuses missing options; replaces names of selectors in a
combination (`tldr.selector.base.Combination`) by their configurations, as in ``selector=chain
selector.steps=[{semdedup: {epsilon: 0.1}},clip_score]``; and names the folder of a selection after what was asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

LONGEST = 150  # characters of a part of a path; most file systems take 255

Load = Callable[[Path], Mapping[str, Any]]


def refuse_missing(keys: Iterable[str], hydra: Any) -> None:
    """Raises ValueError for the first of the ``keys``, which have no default and were not given, naming the file that
    explains it; ``hydra`` is Hydra's own configuration."""
    if missing := sorted(keys):
        key = missing[0].partition("[")[0]
        raise ValueError(f"{key} is missing, and has no default: give {key}=... ({_told_in(key, hydra)} more)")


def refuse_unread(group: str, overrides: Iterable[str], *, instead: str) -> None:
    """Raises ValueError for ``overrides`` of a ``group`` that would not be read because of ``instead``."""
    unread = [text for text in overrides if re.match(rf"[+~]*{group}[.@=]", text)]
    if unread:
        raise ValueError(f"{' '.join(unread)} would be ignored, as {instead} is what is trained on: give only one")


def _told_in(key: str, hydra: Any) -> str:
    """The files that explain a key: that of its group (of data for ``data.root`` and ``selector.target.root``), or else
    the script's; and the recipe's."""
    choices = {name.partition("@"): choice for name, choice in hydra.runtime.choices.items()}
    groups = {package or group: f"{group}/{choice}" for (group, _, package), choice in choices.items()}
    within = [package for package in groups if key.startswith(f"{package}.")]
    file = groups[max(within, key=len)] if within else hydra.job.config_name
    recipe = hydra.runtime.choices.get("experiment")
    return f"conf/{file}.yaml and conf/experiment/{recipe}.yaml say" if recipe else f"conf/{file}.yaml says"


def named_steps(selector: Mapping[str, Any], folder: Path, load: Load) -> dict[str, Any]:
    """The configuration of a selector with each of its ``steps``, a name or ``{name: options}``, replaced by what
    ``load`` reads from ``folder/name.yaml``; ``names`` holds their names. One without a list of steps is returned as it
    is. Raises ValueError for a name that is not there, or an option that it does not take."""
    steps = selector.get("steps")
    if isinstance(steps, str):
        raise ValueError(f"selector.steps={steps}: it is a list, selector.steps=[{steps}]")
    if not isinstance(steps, list) or not any(isinstance(step, str | Mapping) for step in steps):
        return dict(selector)
    pairs = [_step(step, folder, load) for step in steps]
    names = selector.get("names") or [name for name, _ in pairs]
    return {**selector, "steps": [config for _, config in pairs], "names": names}


def _step(step: Any, folder: Path, load: Load) -> tuple[str, dict[str, Any]]:
    if isinstance(step, Mapping) and "_target_" in step:
        return str(step["_target_"]).split(".")[-2], named_steps(step, folder, load)
    if isinstance(step, str):
        name, options = step, {}
    elif isinstance(step, Mapping) and len(step) == 1:
        name, options = next(iter(step.items()))
        options = options or {}
    else:
        raise ValueError(f"selector.steps has {step!r}; a step is a name or {{name: {{option: value}}}}")
    choices = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in choices:
        raise ValueError(f"selector.steps has {name!r}; choose from {', '.join(choices)}")
    config = dict(load(folder / f"{name}.yaml"))
    for option in options:
        if option not in config:
            known = ", ".join(key for key in config if key != "_target_")
            raise ValueError(f"selector.steps: {name} has no option {option!r}; it has {known or 'none'}")
    return name, named_steps({**config, **options}, folder, load)


def selection_folder(config: Mapping[str, Any], hydra: Any) -> str:
    """Where a selection goes: ``out`` if it was given, or else a folder named after data, selector, compression and
    seed, with a subfolder named after the other overrides, as ``hydra`` (Hydra's own configuration) joins them, made a
    `plain_name`. The target's data are added to these, because Hydra leaves them out with the other ``data``."""
    if config["out"]:
        return str(config["out"])
    target, overrides = hydra.runtime.choices.get("data@selector.target"), hydra.job.override_dirname
    overrides = "__".join(part for part in (target and f"target-{target}", overrides) if part)
    names, seed = config["names"], config["seed"]
    name = f"{names['selector']}-c{config['compression']}-s{seed}"
    return str(Path("outputs", names["data"], name, plain_name(overrides)))


def plain_name(overrides: str) -> str:
    """Overrides as one path component, without the characters that have a meaning on Hydra's command line:
    ``selector.steps-[a,{b: {c: 1}}]`` -> ``selector.steps-a-b-c-1``. A long name is cut and ends in a digest; letters
    that Hydra accepts only in quotes are dropped, and the name ends in a digest then, too."""
    name = re.sub(r"-?[^\w.+-]+", "-", overrides, flags=re.ASCII).replace("-__", "__").rstrip("-")
    if len(name) <= LONGEST and overrides.isascii():
        return name
    digest = hashlib.sha256(overrides.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"
