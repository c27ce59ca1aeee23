"""Rows of a comparison as tables, a figure and W&B runs: score, verdicts, what it cost, how far to reduce.

A row is a mapping as `reduction.py` keeps it, with its ``score``. Everything is told for each model and budget alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from _results import markdown
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from tldr.atomic import atomic_path
from tldr.metric.advice import Curve, advise, percent
from tldr.metric.paired import compare, interval
from tldr.report.tracking import finish, live_run

Row = dict[str, Any]

ROW_KEYS = ["data", "model", "budget", "selector", "compression", "seed", "score"]
COSTS = ("scorer", "signals", "select", "refine", "train")  # in the order in which they arise
_COLOURS = ("#1f6fde", "#cf6a2c", "#2f9e6e", "#a24bbf", "#c23b4b", "#8a6d1f", "#2b9bb0", "#555f6b")


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """The rows of every model and budget."""
    for model, budget in dict.fromkeys((row["model"], row["budget"]) for row in rows):
        yield model, budget, [row for row in rows if (row["model"], row["budget"]) == (model, budget)]


def by_seed(rows: Sequence[Row], selector: str, compression: float, key: str = "score") -> dict[int, Any]:
    """A number of a method for each seed; of all pairs (compression 0), whatever ``compression``."""
    return {
        row["seed"]: row[key]
        for row in rows
        if row["selector"] == selector and row["compression"] in (0, compression) and row.get(key) is not None
    }


def advice_of(rows: Sequence[Row], tolerance: float) -> dict[str, Curve]:
    """The curve of every method, of one model and budget."""
    found: dict[str, Curve] = {}
    full = by_seed(rows, "full", 0)
    for name in dict.fromkeys(row["selector"] for row in rows if row["compression"]):
        ratios = sorted({row["compression"] for row in rows if row["selector"] == name})
        curve = advise({ratio: by_seed(rows, name, ratio) for ratio in ratios}, full, tolerance=tolerance)
        if curve is not None:
            found[name] = curve
    return found


def report(rows: Sequence[Row], cfg: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tables as Markdown, and every method's curve by model, budget and name."""
    parts, advice = [], {}
    data, score = rows[0]["data"], " and ".join(cfg["score"])
    mean = f"mean of {score}" if len(cfg["score"]) > 1 else score
    parts.append(
        f"# {data}: {mean}\n\n"
        "Score: mean over seeds ± half of its 95 % interval (Student). Verdicts: of the mean difference, paired over "
        "seeds, at 95 %, not corrected for their number; in brackets the seeds; *: not all of one machine, as far "
        "as the rows say. `recommend`: the compression at which "
        f"the loss against full first exceeds {cfg['tolerance']:g} points, as fitted or as measured, its interval by a "
        "bootstrap over seeds; not beyond what was measured; in brackets the seeds that all compressions have, and how "
        "far the fit is off where that is more. Cost: as if nothing had been found in a cache; FLOPs are those of "
        "networks; what k-means or a sort takes is in the seconds alone."
    )
    for model, budget, part in groups(rows):
        curves = advice_of(part, cfg["tolerance"])
        advice[f"{model} {budget}"] = {
            name: {
                "recommended": curve.recommended, "interval": [curve.earliest, curve.latest], "whole": curve.whole,
                "tolerance": curve.tolerance, "residual": curve.residual, "seeds": list(curve.seeds),
            }
            for name, curve in curves.items()
        }  # fmt: skip
        for ratio in sorted({row["compression"] for row in part} - {0}) or [0.0]:
            told = f"{model}, budget {budget} ({_budget(part, ratio)}), {percent(ratio)} removed"
            parts.append(f"## {told}\n\n{score_table(part, ratio, cfg['against'], curves)}")
            parts.append(f"Cost:\n\n{cost_table(part, ratio)}")
    return "\n\n".join(parts), advice


def score_table(rows: Sequence[Row], ratio: float, against: Sequence[str], curves: dict[str, Curve]) -> str:
    """A line for every method at one compression."""
    head = ["selector", "pairs", "steps", "score", "mismatched", "duplicates", "words"]
    lines = [[*head, *(f"against {other}" for other in against), "recommend"]]
    for name in _methods(rows, ratio):
        scores = by_seed(rows, name, ratio)
        cells = [name, _mean(rows, name, ratio, "pairs", "{:,.0f}"), _mean(rows, name, ratio, "steps", "{:,.0f}")]
        cells += [str(interval(list(scores.values()))), _mean(rows, name, ratio, "mismatched", "{:.1%}")]
        cells += [_mean(rows, name, ratio, "duplicates", "{:.1%}"), _mean(rows, name, ratio, "words", "{:.1f}")]
        for other in against:
            theirs = by_seed(rows, other, ratio)
            found = compare(scores, theirs) if other != name else None
            told = "" if found is None else f"{found.verdict}, {_signed(found.difference)} ({found.difference.seeds})"
            here, there = (by_seed(rows, one, ratio, "machine") for one in (name, other))
            shared = scores.keys() & theirs.keys()
            apart = found is not None and [*map(here.get, shared)] != [*map(there.get, shared)]
            cells.append(told + (" *" if apart else ""))
        lines.append([*cells, str(curves[name]) if name in curves else ""])
    return markdown(lines)


def cost_table(rows: Sequence[Row], ratio: float) -> str:
    """Seconds and TFLOP of every method at one compression, means over seeds, and the totals beside those of full."""
    lines = [
        [
            "selector",
            *(f"{kind} s" for kind in COSTS),
            "total s",
            "of full's",
            "train TFLOP",
            "total TFLOP",
            "of full's",
        ]
    ]
    for name in _methods(rows, ratio):
        cells = [name, *(_mean(rows, name, ratio, f"seconds_{kind}", "{:,.1f}") for kind in COSTS)]
        cells += [_mean(rows, name, ratio, "seconds_total", "{:,.1f}"), _share(rows, name, ratio, "seconds_total")]
        cells += [_mean(rows, name, ratio, f"flops_{kind}", "{:,.3g}", 1e-12) for kind in ("train", "total")]
        lines.append([*cells, _share(rows, name, ratio, "flops_total")])
    return markdown(lines)


def figure(rows: Sequence[Row], tolerance: float, path: Path) -> Path:
    """Score against compression, a panel for each model and budget: points with intervals, the fitted curves, all pairs
    as a line with its interval."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    names = list(dict.fromkeys(row["selector"] for row in rows if row["compression"]))
    drawn = Figure(figsize=(1.2 + 4.6 * len(budgets), 1.4 + 3.4 * len(models)), facecolor="white", layout="constrained")
    axes = drawn.subplots(len(models), len(budgets), squeeze=False)
    drawn.suptitle(f"{rows[0]['data']}: score against the share of pairs removed")
    for model, budget, part in groups(rows):
        panel = axes[models.index(model)][budgets.index(budget)]
        curves = advice_of(part, tolerance)
        full = by_seed(part, "full", 0)
        for name, style in (("full", "-"), ("full_refined", ":")):
            if scores := by_seed(part, name, 0):
                found = interval(list(scores.values()))
                panel.axhline(found.mean, color="#1c2530", linestyle=style, linewidth=1, label=name)
                if not math.isnan(found.half):
                    panel.axhspan(found.low, found.high, color="#1c2530", alpha=0.06, linewidth=0)
        for name in names:
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            marker = "os^Dv"[names.index(name) // len(_COLOURS) % 5]
            ratios = sorted({row["compression"] for row in part if row["selector"] == name})
            found = [interval(list(by_seed(part, name, ratio).values())) for ratio in ratios]
            if not found:
                continue
            error = [0.0 if math.isnan(each.half) else each.half for each in found]
            panel.errorbar(
                ratios, [each.mean for each in found], error, fmt=marker, color=colour, capsize=2, markersize=4,
                linewidth=1, label=name,
            )  # fmt: skip
            if name in curves:
                base = fmean(full[seed] for seed in curves[name].seeds)
                panel.plot(curves[name].compression, base + curves[name].difference, color=colour, linewidth=1)
        panel.set(title=f"{model}, {budget}", xlabel="share removed", ylabel="score")
    handles = {
        label: handle
        for line in axes
        for panel in line
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    drawn.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        drawn.savefig(temporary, format="png", dpi=140, metadata={"Software": None})
    return path


def log_rows(rows: Sequence[Row], cfg: dict[str, Any], logger: Callable[..., Logger], out: Path) -> None:
    """One run of the logger for each model and budget: a row as a step, and all of them as a W&B table."""
    for model, budget, part in groups(rows):
        tracker = logger(name=f"{cfg['data']}-{model}-{budget}", job_type="reduction", save_dir=out)
        tracker.log_hyperparams({**cfg, "model": model, "budget": budget})
        for step, row in enumerate(part):
            numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
            tracker.log_metrics(numbers, step=step)
        run = live_run(tracker.experiment)  # pyright: ignore[reportAttributeAccessIssue]  (every logger has one)
        if run is not None:
            import wandb

            columns: list[Any] = list(dict.fromkeys(key for row in part for key in row))
            run.log({"rows": wandb.Table(columns=columns, data=[[row.get(key) for key in columns] for row in part])})
        finish(tracker)


def _methods(rows: Sequence[Row], ratio: float) -> list[str]:
    return list(dict.fromkeys(row["selector"] for row in rows if row["compression"] in (0, ratio)))


def _budget(rows: Sequence[Row], ratio: float) -> str:
    here = [row for row in rows if row["compression"] in (0, ratio)]
    steps = {row["steps"] for row in here}
    if len(steps) == 1:
        return f"{steps.pop():,} steps each"
    return f"{fmean(row['epochs'] for row in here):.1f} epochs each"


def _mean(rows: Sequence[Row], name: str, ratio: float, key: str, form: str, scale: float = 1.0) -> str:
    """Over seeds; nothing where a seed does not know it."""
    values = by_seed(rows, name, ratio, key)
    known = len(values) == len(by_seed(rows, name, ratio))
    return form.format(scale * fmean(values.values())) if values and known else "–"


def _share(rows: Sequence[Row], name: str, ratio: float, key: str) -> str:
    """A total beside that of full, over the seeds of both."""
    own, full = by_seed(rows, name, ratio, key), by_seed(rows, "full", ratio, key)
    shared = own.keys() & full.keys()
    if not shared or len(own) < len(by_seed(rows, name, ratio)):
        return "–"
    whole = fmean(full[seed] for seed in shared)
    return f"{fmean(own[seed] for seed in shared) / whole:.2f} x" if whole else "–"


def _signed(found: Any) -> str:
    return f"{found.mean:+.1f}" if math.isnan(found.half) else f"{found.mean:+.1f} ± {found.half:.1f}"
