"""How well does each score of a pair tell right captions from wrong ones, on the pool that the scorer learned from?

Every score is a selector that ranks by it alone. `select.py` trains its scorer and writes the score of every pair,
which is then held against what was planted. The captioner is measured with its loss and its decoder's beginning
changed, too. Run again, it trains nothing that is in the cache. Prints a table, and writes it as Markdown and JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl
import torch
from _command import command
from _results import markdown, publish
from torchmetrics.functional.classification import binary_auroc

from tldr.pairs import Pairs
from tldr.report.truth import MISMATCHED
from tldr.tasks.steps import plain_name

FIT = ("alignment", "selector=tldr", "selector.novelty=0")
SCORES: dict[str, tuple[str, ...]] = {  # the column of the score, and what select.py is told
    "captioner": FIT,
    "captioner, init_std 0.02": (*FIT, "model.init_std=0.02"),
    "captioner, all believed": (*FIT, "model.noise_rate=null"),
    "captioner, all believed, init_std 0.02": (*FIT, "model.noise_rate=null", "model.init_std=0.02"),
    "captioner without a codebook": (*FIT, "model=captioner"),
    "clip_score": ("clip.alignment", "selector=clip_score"),
    "clip_loss": ("clip_loss", "selector=clip_loss"),
    "itm_score": ("blip.alignment", "selector=itm_score"),
}
BEST = (0.5, 0.25, 0.1)  # shares of the pool


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["shapes", "cifar_scenes"])
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=SCORES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--select", nargs="*", default=[], help="overrides of select.py: training.max_steps=1600")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"))
    parser.add_argument("--out", type=Path, default=Path("outputs/scorers"))
    given = parser.parse_args()

    rows = [
        {"data": data, "score": name, "seed": seed, **measured(name, data, seed, given)}
        for data in given.data
        for name in given.scores
        for seed in given.seeds
    ]
    publish(given.out, rows, vars(given), table_of(rows))


def measured(name: str, data: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """AUC, and the share of wrong captions in the best part of the pool."""
    column, *overrides = SCORES[name]
    apart = f"-{plain_name('__'.join(given.select))}" if given.select else ""
    out = given.out / f"{data}-{name.replace(', ', '-').replace(' ', '_')}-s{seed}{apart}"
    kept, _ = command(
        "select", *overrides, f"data={data}", f"seed={seed}", f"out={out}", f"cache={given.cache}", "report=false",
        "exports=[]", "logger=none", "trainer.enable_progress_bar=false", *given.select,
    )  # fmt: skip
    pool = Pairs.open(given.cache / "pools" / kept.provenance["pool"])
    decisions = pl.read_parquet(out / "decisions.parquet")
    wrong = pool.column(MISMATCHED)[pool.rows_of(decisions["uid"].to_list())].astype(bool)
    return told(decisions[column].to_numpy(), wrong)


def told(score: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Of N scores (N,), the higher the better, and what is ``wrong`` (N,): ``auc``, that a right pair has the higher
    score of it and a wrong one, and ``best_0.5``, the share of wrong ones in the half that has the highest."""
    order = np.argsort(score, kind="stable")
    place = np.empty(len(score), np.float64)
    place[order] = np.linspace(0, 1, len(score))  # what is outside [0, 1] would go through a sigmoid
    auc = binary_auroc(torch.from_numpy(place), torch.from_numpy(~wrong).long())
    best = {f"best_{share:g}": float(wrong[order[len(order) - round(share * len(order)) :]].mean()) for share in BEST}
    return {"auc": float(auc), **best}


def table_of(rows: list[dict[str, Any]]) -> str:
    """A line for each pool and score, means over the seeds."""
    lines = [["data", "score", "AUC", *(f"wrong in the best {share:.0%}" for share in BEST)]]
    for data, name in dict.fromkeys((row["data"], row["score"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["score"]) == (data, name)]
        shares = (f"{100 * fmean(row[f'best_{share:g}'] for row in mine):.2f}%" for share in BEST)
        lines.append([data, name, f"{fmean(row['auc'] for row in mine):.3f}", *shares])
    return markdown(lines, ["---", "---", *["---:"] * (1 + len(BEST))])


if __name__ == "__main__":
    main()
