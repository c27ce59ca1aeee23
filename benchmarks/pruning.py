"""Data pruning on CIFAR-10: what is left of the accuracy when a share of the pictures is dropped, by score?

As Paul et al. 2021 (arXiv 2107.07075) and Sorscher et al. 2022 (arXiv 2206.14486) ask, at a size for one CPU: a part
of CIFAR-10, small networks, few epochs. For each seed a classifier of several members scores the pool; each score drops
the easiest share by `selector=data_pruning`, and a classifier of one member is trained anew on what is kept, once for
as many epochs as on everything, once for as many steps. The embeddings of the prototypes are the scoring classifier's,
which has seen the labels: self-supervised ones, as Sorscher et al. have, would want a model of their own. Every run is
kept in --out: started again, only what is missing is computed. Prints a table, and writes it as Markdown and JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _command import composed, parted, read
from _results import kept, markdown, publish
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tldr.atomic import write_json
from tldr.evaluator.classification import Classification
from tldr.model.base import load_model
from tldr.pairs import Pairs
from tldr.selector.base import Selector, keep_count
from tldr.signal.extract import extract
from tldr.signal.panel import Panel
from tldr.tasks.fit import fit

SCORES = ("random", "el2n", "grand", "forgetting", "prototypes", "supervised")
BUDGETS = ("epochs", "steps")
ALL = "everything"


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=SCORES)
    parser.add_argument("--pruned", nargs="+", type=float, default=[0.2, 0.5], help="shares that are dropped")
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=BUDGETS, help="what is equal")
    parser.add_argument("--choice", default="hard", choices=("hard", "easy"), help="what is kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--size", type=int, default=10_000, help="training pictures, as many of each class")
    parser.add_argument("--test-size", type=int, default=5_000, help="test pictures, likewise")
    parser.add_argument("--epochs", type=float, default=8, help="over everything")
    parser.add_argument("--members", type=int, default=3, help="networks whose scores are averaged")
    parser.add_argument("--channels", type=int, default=16, help="width of the network's stem")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--out", type=Path, default=Path("outputs/pruning"))
    given = parser.parse_args()

    train, test = (parted(read("data=cifar10", f"data.split={split}"), count)[0]
                   for split, count in (("train", given.size), ("test", given.test_size)))  # fmt: skip
    rows = [row for seed in given.seeds for row in Bench(train, test, seed, given).rows()]
    publish(given.out, rows, vars(given), table_of(rows))


class Bench:
    """All runs of one seed."""

    def __init__(self, train: Pairs, test: Pairs, seed: int, given: argparse.Namespace) -> None:
        self.train, self.test, self.seed, self.given = train, test, seed, given
        setting = [given.size, given.epochs, given.members, given.channels, given.batch_size, given.lr, given.test_size]
        self.home: Path = given.out / "-".join(f"{value:g}" for value in setting) / f"s{seed}"
        self.panel: Panel | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Training on everything, then each share, score and budget."""
        fixed = {"seed": self.seed, "pruned": 0.0, "score": ALL, "budget": "both"}
        rows = [fixed | kept(self.home / f"{ALL}.json", lambda: self.run(ALL, self.train, self.steps(len(self.train))))]
        for pruned in self.given.pruned:
            for score in self.given.scores:
                for budget in self.given.budgets:
                    name = f"{score}-{self.given.choice}-{pruned:g}-{budget}"
                    fixed = {"seed": self.seed, "pruned": pruned, "score": score, "budget": budget}
                    file = self.home / f"{name}.json"
                    rows.append(fixed | kept(file, lambda n=name, f=fixed: self.pruned_run(n, **f)))
        return rows

    def pruned_run(self, name: str, *, pruned: float, score: str, budget: str, **_: Any) -> dict[str, float]:
        """Select, train, test."""
        keep = keep_count(len(self.train), pruned)
        selection = self.selector(score)(self.train, self.signals(score), keep=keep, seed=self.seed)
        return self.run(
            name, self.train.take(selection.rows), self.steps(keep if budget == "epochs" else len(self.train))
        )

    def steps(self, count: int) -> int:
        """Of the optimiser, for ``--epochs`` over so many pairs."""
        return max(2, round(self.given.epochs * count / self.given.batch_size))

    def selector(self, score: str) -> Selector:
        """Random, or data pruning by the score."""
        own = ["selector=random"]
        if score != "random":
            own = ["selector=data_pruning", f"selector.score={score}", f"selector.choice={self.given.choice}",
                   "selector.labels=label", "selector.embedding=classifier.embedding"]  # fmt: skip
        return instantiate(OmegaConf.to_container(composed("select", *own).selector), _convert_="all")

    def signals(self, score: str) -> Panel | None:
        """What the scoring classifier says of the pool; it is trained when somebody asks first."""
        if score == "random":
            return None
        if self.panel is None:
            folder = self.home / "scorer"
            if not (folder / "model.ckpt").is_file():
                began = time.perf_counter()
                self.fit(
                    folder, self.train, self.steps(len(self.train)), members=self.given.members, seed=1000 + self.seed
                )
                write_json(folder / "seconds.json", time.perf_counter() - began)
            scorer: Any = load_model(folder)
            self.panel = Panel({"classifier": extract(self.train, scorer, folder=folder / "signals")})
        return self.panel

    def run(self, name: str, pairs: Pairs, steps: int) -> dict[str, float]:
        """A classifier trained on ``pairs``: its accuracy on the test pictures, and what it took."""
        print(f"seed {self.seed}, {name}: {len(pairs)} pictures, {steps} steps", flush=True)
        began = time.perf_counter()
        self.fit(self.home / name, pairs, steps, members=1, seed=self.seed)
        seconds = time.perf_counter() - began
        model = load_model(self.home / name)
        found = Classification(batch_size=256, progress=False)(model, self.test)
        return {"kept": len(pairs), "steps": steps, "seconds": seconds, "top1": found["classification/top1"]}

    def fit(self, folder: Path, pairs: Pairs, steps: int, *, members: int, seed: int) -> None:
        """Train the classifier of conf/model."""
        given = self.given
        cfg = composed(
            "train", "model=classifier", f"model.members={members}", f"model.image.channels={given.channels}",
            f"model.optimizer.lr={given.lr}", "trainer.enable_progress_bar=false",
        )  # fmt: skip
        made = {key: instantiate(OmegaConf.to_container(cfg[key]), _convert_="all") for key in ("model", "trainer")}
        fit(pairs, **made, folder=folder, max_steps=steps, batch_size=given.batch_size, seed=seed)


def table_of(rows: list[dict[str, Any]]) -> str:
    """The table: accuracy, mean and standard deviation over seeds, and its mean difference from random's."""
    found = {(row["pruned"], row["score"], row["budget"], row["seed"]): row["top1"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    budgets = [budget for budget in BUDGETS if any(row["budget"] == budget for row in rows)]
    lines = [["pruned", "score", *(f"equal {b}" for b in budgets), *(f"less random, equal {b}" for b in budgets)]]

    def told(values: list[float]) -> str:
        return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    full = told([found[0.0, ALL, "both", seed] for seed in seeds])
    lines.append(["0", ALL, *[full] * len(budgets), *[""] * len(budgets)])
    for pruned, score in dict.fromkeys((row["pruned"], row["score"]) for row in rows if row["score"] != ALL):
        cells, ahead = [], []
        for budget in budgets:
            values = [found[pruned, score, budget, seed] for seed in seeds]
            cells.append(told(values))
            base = [found.get((pruned, "random", budget, seed)) for seed in seeds]
            gaps = [value - other for value, other in zip(values, base, strict=True) if other is not None]
            ahead.append(f"{fmean(gaps):+.1f}" if gaps and score != "random" else "")
        lines.append([f"{pruned:g}", score, *cells, *ahead])
    return markdown(lines, ["---:", "---", *["---:"] * (len(lines[0]) - 2)])


if __name__ == "__main__":
    main()
