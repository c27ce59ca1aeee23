"""Every way to reduce a data set, measured in the same way: pool, selections, pre-training, evaluation, verdicts.

    python benchmarks/reduction.py data=cifar_scenes selectors=[tldr,semdedup] models=[clip] compressions=[0.75]

benchmarks/conf/reduction.yaml lists the options; benchmarks/conf/experiment/ has complete comparisons. Every method
selects once for each compression and seed, whatever is trained on it; all selections train the same models, for equal
steps at several budgets and for equal epochs. A row is kept as soon as it is finished: run again, only what is missing
is computed (dry=true lists it). known=[rows.csv] also takes the rows of an earlier comparison, so that a new method is
compared with those of docs/rows/ without measuring them again. Results: rows.parquet and rows.csv; `results.md` with
intervals and verdicts paired over seeds, the costs, and how far to reduce; and a figure.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from _command import CONF, arguments, command
from _controls import ROWS, TRUTH, LengthBins
from _plan import NOTHING_REMOVED, Method, Run, digest, options_of, plan, pool_of
from _tables import COSTS, ROW_KEYS, figure, log_rows, report
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

import tldr
from tldr.atomic import atomic_path, write_json
from tldr.ledger import Ledger
from tldr.pairs import Pairs
from tldr.refiner.base import ORIGINAL
from tldr.report.truth import MISMATCHED, planted
from tldr.selector.base import keep_count

HOME = Path(__file__).resolve().parent / "conf"


class Missing(ValueError):
    """A control that this pool cannot have."""


class Bench:
    """Everything that one configuration asks for, and what of it is done."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        self.cfg, self.out = cfg, Path(cfg["out"])
        self.pool, self.evaluated = pool_of(cfg, CONF)
        self.runs = plan(cfg, CONF)
        self.known = known(cfg["known"])
        self.failed: dict[str, str] = {}  # run: why
        self.broken: dict[Path, str] = {}  # selection: why
        self.opened: dict[Path, Pairs] = {}

    # ---------------------------------------------------------------- selections

    def select_overrides(self, method: Method, compression: float, seed: int) -> list[str]:
        """What decides a selection."""
        training = [f"training.max_steps={self.cfg['scorer_steps']}", f"training.batch_size={self.cfg['batch_size']}"]
        own = [f"selector={method.selector}", f"compression={compression or NOTHING_REMOVED!r}", f"seed={seed}"]
        return [*self.pool, *own, *training, *self.cfg["overrides"]["select"], *method.overrides]

    def place(self, method: Method, compression: float, seed: int) -> Path:
        """Where a selection lies: by the method's options, also those that its YAML gives."""
        bins = self.cfg["length_bins"] if method.name == "tldr_length_bins" else None
        options = options_of(CONF / "selector", method.selector)
        name = digest(method.name, self.select_overrides(method, compression, seed), options, bins)
        return self.out / "selections" / f"{method.name}-c{compression:g}-s{seed}-{name}"

    def selection(self, method: Method, compression: float, seed: int) -> Path:
        """The folder of a selection, made if it is not there."""
        folder = self.place(method, compression, seed)
        if folder in self.broken:
            raise Missing(self.broken[folder])
        if (folder / "ledger.json").is_file():  # written last
            return folder
        try:
            self.make(folder, method, compression, seed)
        except Exception as error:
            self.broken[folder] = str(error)
            raise
        return folder

    def make(self, folder: Path, method: Method, compression: float, seed: int) -> None:
        """Do what select.py does; a control that is no selector takes its rows from the pool of ``full``."""
        if method.name in ROWS:
            pool = self.open(self.selection(Method("full", "random"), 0.0, seed))
            if lacking := set(TRUTH.get(method.name, ())) - set(pool.table.column_names):
                raise Missing(f"no control {method.name}: the pool has no {', '.join(sorted(lacking))}")
            ledger = Ledger()
            with ledger.stage("select"):
                rows = ROWS[method.name](pool, keep_count(len(pool), compression), seed)
            names = {**pool.provenance["names"], "selector": method.name}
            told = {"pool": pool.hash, "names": names, "compression": compression, "seed": seed}
            pool.take(rows, provenance=told).write(folder)
            ledger.write(folder)
            return
        given = self.select_overrides(method, compression, seed)
        fixed = [f"out={folder}", f"cache={self.cfg['cache']}", "logger=none", "report=false", "exports=[]"]
        fixed.append("training.balance=0")  # as the rows that are known; what overrides.select has comes after it
        changed = {}
        if method.name == "tldr_length_bins":
            changed["selector"] = lambda inner: LengthBins(inner, bins=self.cfg["length_bins"])
        command("select", *fixed, *given, f"names.selector={method.name}", **changed)

    def open(self, folder: Path) -> Pairs:
        """The pairs of a selection."""
        if folder not in self.opened:
            self.opened[folder] = Pairs.open(folder)
        return self.opened[folder]

    # ---------------------------------------------------------------- rows

    def train_overrides(self, run: Run) -> list[str]:
        """What decides a training, beyond its pairs and steps."""
        own = [f"model={run.learner.model}", f"batch_size={run.learner.batch_size}", f"seed={run.seed}"]
        return [*own, *self.cfg["overrides"]["train"], *run.learner.overrides]

    def evaluate_overrides(self) -> list[str]:
        """What decides an evaluation, beyond the checkpoint."""
        return [f"evaluator={self.cfg['evaluator']}", *self.evaluated, *self.cfg["overrides"]["evaluate"]]

    def file(self, run: Run) -> Path:
        """Where a row is kept. Its name stands for what decides it, but for the code, what files of data hold, and the
        YAMLs of data, scorers, models, refiners and the steps of a selector: who changes one of those gives another
        ``out``, and no rows that are ``known``."""
        parts = [self.place(run.method, run.compression, run.seed).name, self.train_overrides(run)]
        key = digest(*parts, self.evaluate_overrides(), run.budget.steps, run.budget.epochs)
        return self.out / "rows" / f"{run}-{key}.json"

    def home(self, run: Run) -> Path:
        """Where a run trains, whatever evaluates it: what failed to be evaluated need not be trained again."""
        parts = [self.place(run.method, run.compression, run.seed).name, self.train_overrides(run)]
        return self.out / "runs" / f"{run}-{digest(*parts, run.budget.steps, run.budget.epochs)}"

    def refuse_other_pool(self, pool: str) -> None:
        """Raises ValueError if a row that is there was measured on another pool."""
        for row in filter(None, map(self.found, self.runs)):
            if (row.get("pool") or pool) != pool:  # older rows do not say
                raise ValueError(
                    f"the pool has changed since {row['run']} was measured (hash {pool}, then {row['pool']}): give "
                    "another out=, and no known rows, or restore the data"
                )

    def row(self, run: Run) -> dict[str, Any]:
        """Select, train, evaluate; what came of it."""
        source = self.selection(run.method, run.compression, run.seed)
        pairs = self.open(source)
        self.refuse_other_pool(pairs.provenance["pool"])
        steps = run.budget.of(len(pairs), run.learner.batch_size)
        home = self.home(run)
        always = [f"cache={self.cfg['cache']}", "logger=none"]
        fixed = [f"pairs={source}", f"out={home}", f"max_steps={steps}", "checkpoint_every=0", "resume=true"]
        command("train", *always, *fixed, *self.train_overrides(run))
        trained = json.loads((home / "ledger.json").read_text(encoding="utf-8"))
        numbers, seconds = command("evaluate", *always, f"checkpoint={home}", f"out={home}", *self.evaluate_overrides())
        if not self.cfg["keep_checkpoints"]:
            (home / "model.ckpt").unlink()
        selected = json.loads((source / "ledger.json").read_text(encoding="utf-8"))
        return {
            "data": self.cfg["data"], "selector": run.method.name, "compression": run.compression, "seed": run.seed,
            "model": run.learner.name, "budget": run.budget.name, "pairs": len(pairs), "steps": steps,
            "epochs": steps * run.learner.batch_size / len(pairs), "words": float(pairs.words.mean()),
            **left(pairs), **numbers, **costs([*selected, *trained]), "seconds_evaluate": seconds,
            "hash": pairs.hash, "pool": pairs.provenance["pool"], "selection": source.name,
            "version": tldr.__version__, "torch": torch.__version__, "machine": machine(),
        }  # fmt: skip

    def found(self, run: Run) -> dict[str, Any] | None:
        """The row of a run, if it is there: measured here, or known."""
        file = self.file(run)
        if file.is_file():
            return {"run": file.stem, **json.loads(file.read_text(encoding="utf-8"))}
        return self.known.get(file.stem)

    def done(self) -> list[dict[str, Any]]:
        """The rows of this configuration that are there, each with its score."""
        return [self.scored(row) for row in map(self.found, self.runs) if row is not None]

    def missing(self) -> list[Run]:
        """The runs that have no row."""
        return [run for run in self.runs if self.found(run) is None]

    def scored(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the mean of the metrics that make the score."""
        if lacking := [name for name in self.cfg["score"] if name not in row]:
            there = ", ".join(name for name in row if "/" in name)
            raise ValueError(
                f"score has {', '.join(lacking)}, which evaluator={self.cfg['evaluator']} does not give: {there}"
            )
        return {**row, "score": sum(row[name] for name in self.cfg["score"]) / len(self.cfg["score"])}

    def compute(self) -> int:
        """Every row that is missing; how many came."""
        came, missing = 0, self.missing()
        for number, run in enumerate(missing, 1):
            print(f"\n=== {number} of {len(missing)}: {run}", flush=True)
            try:
                write_json(self.file(run), self.row(run))
                came += 1
            except Exception as error:  # told at the end: one method should not cost a night
                if not isinstance(error, Missing):
                    if self.cfg["stop"]:
                        raise
                    traceback.print_exc()
                self.failed[str(run)] = str(error)
                print(f"left out: {run}: {error}", flush=True)
        return came


def machine() -> str:
    """What computes, by which sums are rounded: rows of two may differ by more than two methods do."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, threads: {torch.get_num_threads()}"


def known(files: list[str]) -> dict[str, dict[str, Any]]:
    """The rows of tables that earlier comparisons left, by run. Raises ValueError naming a file that is none."""
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"known has {file}, which is not there; give a rows.csv that this command has written")
        for row in pl.read_csv(file, infer_schema_length=None).to_dicts():
            if "run" not in row:
                raise ValueError(f"known has {file}, which has no column run; give a rows.csv of this command")
            rows[row["run"]] = row
    return rows


def left(pairs: Pairs) -> dict[str, float]:
    """What of the planted noise is left. A wrong caption that a refiner has replaced counts no more; one that it has
    only added to, does."""
    found = planted(pairs, np.arange(len(pairs)))
    if "mismatched" in found and ORIGINAL in pairs.table.column_names:
        texts = zip(pairs.captions.to_pylist(), pairs.column(ORIGINAL), strict=True)
        kept = np.array([text.startswith(original.rstrip()) for text, original in texts])
        found["mismatched"] = float((pairs.column(MISMATCHED).astype(bool) & kept).mean())
    return found


def costs(stages: list[dict[str, Any]]) -> dict[str, float | None]:
    """Seconds and FLOPs of every kind, as if nothing had been found in a cache; None where the cost of what was found
    is not known. Reading the pool, which all do, and reports are not among them."""
    found: dict[str, float | None] = {}
    for unit in ("seconds", "flops"):
        for kind in COSTS:
            parts = [stage[f"made_{unit}"] for stage in stages if stage["name"].split()[0] == kind]
            found[f"{unit}_{kind}"] = None if None in parts else float(sum(parts))
        each = [found[f"{unit}_{kind}"] for kind in COSTS]
        found[f"{unit}_total"] = None if None in each else float(sum(value or 0.0 for value in each))
    return found


def main(overrides: list[str]) -> None:
    """Run it; see the module's docstring."""
    if {"-h", "--help"} & set(overrides):
        print(f"{__doc__}\n{(HOME / 'reduction.yaml').read_text(encoding='utf-8')}")
        return
    try:
        with initialize_config_dir(str(HOME), version_base="1.3"):
            cfg: Any = OmegaConf.to_container(compose("reduction", overrides=overrides), resolve=True)
        bench = Bench(cfg)
        arguments("evaluate", "checkpoint=null", *bench.evaluate_overrides())  # else told after the first training
    except (HydraException, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    missing = bench.missing()
    print(f"{len(bench.runs)} runs, {len(missing)} missing, in {bench.out}")
    if cfg["dry"]:
        for run in bench.runs:
            made = (bench.place(run.method, run.compression, run.seed) / "ledger.json").is_file()
            print(f"{'missing' if run in missing else 'done   '}  {run}{'' if made else '  (selection missing too)'}")
        return
    start = time.perf_counter()
    came = bench.compute()
    rows = bench.done()
    if rows:
        text, advice = report(rows, cfg)
        table = pl.DataFrame(rows, infer_schema_length=None).select(pl.col(ROW_KEYS), pl.exclude(ROW_KEYS))
        with atomic_path(bench.out / "rows.parquet") as temporary:
            table.write_parquet(temporary)
        with atomic_path(bench.out / "rows.csv") as temporary:
            table.write_csv(temporary)
        with atomic_path(bench.out / "results.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        write_json(bench.out / "results.json", {"settings": cfg, "rows": rows, "advice": advice})
        figure(rows, cfg["tolerance"], bench.out / "reduction.png")
        print(f"\n{text}")
        if came:
            offline = [f"logger.offline={cfg['offline']}"] if cfg["logger"] == "wandb" else []
            factory = arguments("train", *bench.pool, f"logger={cfg['logger']}", *offline)[0]["logger"]
            log_rows(rows, cfg, factory, bench.out)
    wrote = f"; wrote {bench.out}/: rows.parquet, rows.csv, results.md" if rows else ""
    print(f"\n{came} runs in {time.perf_counter() - start:.0f} s{wrote}")
    for why in dict.fromkeys(bench.failed.values()):
        names = [name for name in bench.failed if bench.failed[name] == why]
        print(f"left out: {', '.join(names)}: {why}")
    if any(not why.startswith("no control") for why in bench.failed.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
