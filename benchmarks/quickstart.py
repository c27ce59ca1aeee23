"""The idea at work: reduce `shapes` by 75 %, train one model on all, on random and on TL;DR's pairs, compare.

Every step is a command of the README's, run in this process: `select.py`, `train.py`, `evaluate.py`. All models train
for the same number of steps. Ends with a table, and with results.json and report.png in outputs/quickstart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from _command import command

from tldr.atomic import write_json
from tldr.pairs import Pairs
from tldr.report.comparison import comparison_figure, comparison_table
from tldr.report.truth import planted


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of selection and training (the data stay the same)")
    parser.add_argument("--out", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--model", default="clip", help="what is trained on the pairs: clip, blip")
    parser.add_argument("--steps", type=int, default=300, help="of every training")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=16_000, help="pairs of the pool")
    parser.add_argument("--scorer-steps", type=int, default=600)
    given = parser.parse_args()

    start = time.perf_counter()
    out, cache = given.out, given.out / "cache"
    home = out / f"seed{given.seed}"
    always = [f"seed={given.seed}", f"cache={cache}", "logger=none"]
    stages: dict[str, float] = {}
    subsets: dict[str, Pairs] = {}
    sources: dict[str, Path] = {}
    seconds = {"full": 0.0}
    rows = []
    for name in ("tldr", "random"):
        sources[name] = home / name
        overrides = [f"selector={name}", "compression=0.75", f"data.size={given.size}", f"out={home / name}"]
        training = [f"training.max_steps={given.scorer_steps}", f"training.batch_size={given.batch_size}"]
        subsets[name], seconds[name] = command("select", *overrides, *training, *always)
        ledger = json.loads((home / name / "ledger.json").read_text())
        stages |= {f"{name}: {stage['name']}": stage["seconds"] for stage in ledger}
    sources["full"] = cache / "pools" / subsets["tldr"].provenance["pool"]
    subsets["full"] = pool = Pairs.open(sources["full"])

    for name in ("full", "random", "tldr"):
        checkpoint = home / name / given.model
        overrides = [f"model={given.model}", f"pairs={sources[name]}", f"out={checkpoint}"]
        training = [f"max_steps={given.steps}", f"batch_size={given.batch_size}"]
        _, train_seconds = command("train", *overrides, *training, *always)
        overrides = [f"checkpoint={checkpoint}", "data=shapes_eval", f"cache={cache}", "logger=none"]
        numbers, evaluate_seconds = command("evaluate", *overrides)
        stages |= {f"{name}: train": train_seconds, f"{name}: evaluate": evaluate_seconds}
        rows.append(
            {
                "name": name,
                "pairs": len(subsets[name]),
                "steps": given.steps,
                "seconds": round(seconds[name] + train_seconds, 1),
                "tr@1": round(numbers["retrieval/tr@1"], 2),
                "ir@1": round(numbers["retrieval/ir@1"], 2),
                **planted(pool, pool.rows_of(subsets[name].uids.to_pylist())),
            }
        )
    total = round(time.perf_counter() - start, 1)
    stages = {name: round(taken, 1) for name, taken in stages.items()}
    write_json(out / "results.json", {"rows": rows, "seconds_total": total, "stages": stages, "seed": given.seed})
    figure = comparison_figure(rows, out / "report.png", title="shapes: a quarter of the pairs, equal steps")
    print("\nseconds of each stage\n" + "\n".join(f"  {name:<18} {taken:6.1f}" for name, taken in stages.items()))
    print("\n" + comparison_table(rows))
    print(f"\n{total:.0f} s in all; wrote {out / 'results.json'} and {figure}; look at {home}/tldr/report.html")
    print("next, your own: python select.py data=folder data.root=your/pictures")


if __name__ == "__main__":
    main()
