"""What Weights & Biases is shown of a run: histograms and example pairs of a selection, and artifacts from pool to
subset to checkpoint.

``experiment`` is what Lightning's loggers give (``logger.experiment``). Where it is not a live W&B run, as with
``logger=none`` or on ranks other than the first, these functions do nothing and wandb is not imported. Offline, W&B
cannot say which artifacts a run used: ``lineage/...`` in the run's config always does.

Artifacts refer to files where they are: nothing of a pool's size is copied, hashed or uploaded. Which content that
was is told by the hash in ``content.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import pyarrow as pa
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger

from tldr.atomic import write_json
from tldr.data.images import ImageError, ImageStore
from tldr.ledger import Ledger
from tldr.pairs import Pairs
from tldr.report.decisions import Decisions
from tldr.report.truth import planted

if TYPE_CHECKING:
    import wandb

P = ParamSpec("P")
T = TypeVar("T")

_BINS = 64
_NAME = 120  # characters; W&B takes 128
_PICTURE = 256  # pixels of the longer side


def no_logger(**_: Any) -> Logger:
    """A logger that keeps nothing; takes the arguments of any other."""
    return DummyLogger()


def csv_logger(*, save_dir: str | Path, **_: Any) -> Logger:
    """A logger that writes ``save_dir/csv/version_<n>/metrics.csv``, every run its own."""
    return CSVLogger(save_dir, name="csv")


def begin(logger: Callable[..., Logger], *, name: str, group: str, resume: bool = False, **options: Any) -> Logger:
    """Begin a run of this ``name``, in the logger's own ``group`` or else in this one. With ``resume``, continue the
    last run in ``save_dir`` if W&B has it; an offline run cannot be continued, so a new one begins."""
    given, file = getattr(logger, "keywords", {}), Path(options["save_dir"]) / f"wandb-{options.get('job_type')}.json"
    if given.get("group") is None:
        options["group"] = group
    if resume and file.is_file() and not given.get("offline"):
        options["id"] = json.loads(file.read_text(encoding="utf-8"))["id"]  # which Lightning's logger resumes
    made = logger(name=_short(name), **options)
    run = live_run(made.experiment)  # pyright: ignore[reportAttributeAccessIssue]  (every logger has one)
    if run is not None and not run.offline:
        write_json(file, {"id": run.id, "url": run.url})
    return made


def part_of(logger: Logger, name: str) -> Logger:
    """Where the scorer ``name`` tells of its training: beside the others, whose steps begin at 0 too. As CSV, in a
    folder of that name."""
    if isinstance(logger, CSVLogger):
        return CSVLogger(logger.log_dir, name="", version=name or "main")
    run = live_run(logger.experiment)  # pyright: ignore[reportAttributeAccessIssue]
    return WandbLogger(experiment=cast(Any, run), prefix=name) if run is not None and name else logger


def ends_its_run(task: Callable[P, T]) -> Callable[P, T]:
    """When the task fails, close the W&B run that it began: else the next job of a sweep would log into it."""

    @wraps(task)
    def closed(*args: P.args, **kwargs: P.kwargs) -> T:
        before = _current()
        try:
            return task(*args, **kwargs)
        except BaseException:
            run = _current()
            if run is not None and run is not before:
                run.finish(exit_code=1)
            raise

    return closed


def _current() -> wandb.Run | None:
    module = sys.modules.get("wandb")
    return None if module is None else module.run


def finish(logger: Logger, ledger: Ledger | None = None) -> None:
    """Close the run, with what it cost in its summary, so that the next job of a sweep begins its own."""
    logger.finalize("success")
    run = live_run(logger.experiment)  # pyright: ignore[reportAttributeAccessIssue]  (every logger has one)
    if run is not None:
        for stage in ledger.stages if ledger else ():
            cost = {"seconds": stage.seconds, "flops": stage.flops, "cached": stage.cached}
            run.summary.update({f"ledger/{stage.name}/{unit}": value for unit, value in cost.items()})
        run.finish()


def live_run(experiment: object) -> wandb.Run | None:
    """The experiment, if it is a W&B run that records."""
    if not type(experiment).__module__.startswith("wandb."):
        return None
    run = cast("wandb.Run", experiment)
    return None if run.disabled else run


# --- a selection ----------------------------------------------------------------------------------------------------


def log_selection(
    experiment: object,
    pool: Pairs,
    decisions: pa.Table,
    *,
    facts: Mapping[str, object],
    examples: int = 64,
    seed: int = 0,
) -> None:
    """Histograms of every score and of the captions' words, in the pool and in what was kept; their means and the
    ``facts`` in the run's summary; a table of ``examples``."""
    run = live_run(experiment)
    if run is None:
        return
    import wandb

    made = Decisions(pool, decisions)
    panels: dict[str, Any] = {}
    parts = {"pool": np.arange(len(pool)), "kept": np.flatnonzero(made.kept)}
    parts = {where: rows for where, rows in parts.items() if len(rows)}  # who makes pairs keeps none
    for name, values in {**made.scores, "words": pool.words}.items():
        values = values.astype(np.float64)  # equal numbers of 32 bits cannot be cut into bins
        edges = np.histogram_bin_edges(values, _BINS)  # the same for both, so that they can be laid over each other
        for where, rows in parts.items():
            panels[f"{where}/{name}"] = wandb.Histogram(np_histogram=np.histogram(values[rows], edges))
            run.summary[f"{where}/{name}_mean"] = float(values[rows].mean())
    for where, rows in parts.items():
        run.summary.update({f"{where}/{kind}": share for kind, share in planted(pool, rows).items()})
    run.summary.update({f"selection/{name}": value for name, value in facts.items()})
    run.log({**panels, "pairs": _examples(made, examples, seed)})


def _examples(made: Decisions, count: int, seed: int) -> wandb.Table:
    """Pairs from both ends of the kept and of the dropped."""
    import wandb

    store, pool = ImageStore(made.pool.root), made.pool
    galleries = made.galleries(max(1, count // 4), seed=seed)
    data = []
    for gallery in galleries:
        for row in gallery.rows.tolist():
            try:
                picture = store.load(pool.images[row].as_py())
                picture.thumbnail((_PICTURE, _PICTURE))
                shown = wandb.Image(picture, file_type="jpg")
            except ImageError:
                shown = None  # an empty cell: the pair is listed all the same
            scores = [float(values[row]) for values in made.scores.values()]
            told = [gallery.title, bool(made.kept[row]), made.reason(row), *scores, pool.uids[row].as_py()]
            data.append([shown, pool.captions[row].as_py(), *told])
    return wandb.Table(columns=["picture", "caption", "example of", "kept", "reason", *made.scores, "uid"], data=data)


# --- lineage --------------------------------------------------------------------------------------------------------


def artifact_name(pairs: Pairs) -> str:
    """What a pool (``shapes-1f3a...``) or a subset (``shapes-tldr-77b0...``) is called wherever it is made or used."""
    names = pairs.provenance.get("names", {})
    parts = [names.get("data", pairs.provenance.get("data", "pairs")), names.get("selector"), pairs.hash]
    return "-".join(part for part in parts if part)


def log_pairs_artifact(
    experiment: object, pairs: Pairs, path: str | Path, *, name: str, type: str, parent: str | None = None
) -> None:
    """These pairs, which lie at ``path``, are an output of the run; ``parent`` is the hash of the pool they are
    from."""
    run = live_run(experiment)
    if run is not None:
        content = {"hash": pairs.hash, "rows": len(pairs), "root": pairs.root, "parent": parent}
        run.log_artifact(_artifact(run, path, name=name, type=type, content=content))


def use_pairs_artifact(experiment: object, pairs: Pairs, path: str | Path, *, name: str, type: str) -> None:
    """These pairs are an input of the run: the artifact of this name, which is made where the server has none."""
    run = live_run(experiment)
    if run is None:
        return
    content = {"hash": pairs.hash, "rows": len(pairs), "root": pairs.root, "parent": pairs.provenance.get("parent")}
    artifact = _artifact(run, path, name=name, type=type, content=content)
    if run.offline:
        return
    import wandb

    try:
        run.use_artifact(f"{artifact.name}:latest")
    except (wandb.Error, ValueError):  # not there: the run that made it was offline, or nobody logged it
        run.use_artifact(artifact)


def log_file_artifact(experiment: object, path: str | Path, *, name: str, type: str, parent: str | None = None) -> None:
    """A file, such as a checkpoint, is an output of the run. ``parent`` is the hash of the pairs it was made from."""
    run = live_run(experiment)
    if run is not None:
        stat = Path(path).stat()
        content = {"bytes": stat.st_size, "written": stat.st_mtime, "parent": parent}
        run.log_artifact(_artifact(run, path, name=name, type=type, content=content))


def _artifact(run: wandb.Run, path: str | Path, *, name: str, type: str, content: Mapping[str, Any]) -> wandb.Artifact:
    """An artifact that refers to ``path``; writes ``lineage/<type>/...`` into the run's config."""
    import wandb

    lineage = {f"lineage/{type}/{key}": value for key, value in {"name": name, **content}.items() if value is not None}
    run.config.update(lineage, allow_val_change=True)
    artifact = wandb.Artifact(_plain(name), type, metadata=dict(content))
    file = Path(path).resolve()
    file = file / "pairs.arrow" if file.is_dir() else file
    artifact.add_reference(file.as_uri(), checksum=False)  # which would read a pool of any size
    with artifact.new_file("content.json") as handle:  # else another file at the same path would be the same version
        json.dump(content, handle, sort_keys=True)
    return artifact


def _plain(name: str) -> str:
    """A name that W&B takes for an artifact; one with other signs, or too long, keeps apart from others by a digest."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    return _short(name) if plain == name else f"{plain[: _NAME - 9]}-{_digest(name)}"


def _short(name: str) -> str:
    """No more than `_NAME` of it, the last of them a digest where it is longer."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 9]}-{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
