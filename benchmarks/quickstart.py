"""The idea at work: reduce `shapes` by 75 %, train one model on all, on random and on TL;DR's pairs, compare.

Every step is a command of the README's, run in this process: `select.py`, `train.py`, `evaluate.py`. All models train
for the same number of steps. Ends with a table, and with results.json and report.png in outputs/quickstart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tldr.atomic import write_json
from tldr.pairs import Pairs
from tldr.report.comparison import comparison_figure, comparison_table
from tldr.report.truth import planted
from tldr.tasks import evaluate, select, train

CONF = Path(__file__).resolve().parents[1] / "conf"
TASKS: dict[str, Any] = {"select": select.run, "train": train.run, "evaluate": evaluate.run}


def command(script: str, *overrides: str) -> tuple[Any, float]:
    """What ``python script.py overrides`` does; its result, and the seconds it took."""
    print(f"\n$ python {script}.py {' '.join(overrides)}", flush=True)
    cfg = compose(script, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config._set_parent(cfg)  # pyright: ignore[reportPrivateUsage]
    start = time.perf_counter()
    plain = OmegaConf.to_container(config, resolve=True)
    result = TASKS[script](**instantiate(plain, _convert_="all"), config=plain)
    return result, time.perf_counter() - start


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of selection and training (the data stay the same)")
    parser.add_argument("--out", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--model", default="clip", help="what is trained on the pairs: clip, blip")
    parser.add_argument("--steps", type=int, default=300, help="of every training")
    parser.add_argument("--size", type=int, default=16_000, help="pairs of the pool")
    parser.add_argument("--scorer-steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=128)
    given = parser.parse_args()

    start = time.perf_counter()
    out, seed = given.out, f"seed={given.seed}"
    common = [seed, f"data.size={given.size}", f"cache={out}/cache", "logger=none"]
    rows, stages = [], {}
    pool: Pairs | None = None
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in ("tldr", "random", "full"):
            seconds = 0.0
            if name == "full":
                source = [f"pairs={out}/cache/pools/{pool.hash}"] if pool is not None else []
                subset = pool
            else:
                folder = f"{out}/seed{given.seed}/{name}"
                steps = f"training.max_steps={given.scorer_steps}", f"training.batch_size={given.batch_size}"
                subset, seconds = command(
                    "select", f"selector={name}", "compression=0.75", *steps, f"out={folder}", *common
                )
                ledger = json.loads(Path(folder, "ledger.json").read_text())
                stages.update({f"{name}/{stage['name']}": stage["seconds"] for stage in ledger})
                source = [f"pairs={folder}"]
                if pool is None:
                    pool = Pairs.open(
                        out / "cache" / "pools" / json.loads(Path(folder, "provenance.json").read_text())["pool"]
                    )
            assert pool is not None
            assert subset is not None
            where = f"{out}/seed{given.seed}/{name}/{given.model}"
            _, training = command(
                "train",
                f"model={given.model}",
                *source,
                f"max_steps={given.steps}",
                f"out={where}",
                seed,
                "logger=none",
            )
            numbers, evaluation = command(
                "evaluate", f"checkpoint={where}", "data=shapes_eval", f"cache={out}/cache", "logger=none"
            )
            stages |= {f"{name}/train": round(training, 1), f"{name}/evaluate": round(evaluation, 1)}
            kept = pool.rows_of(subset.uids.to_pylist()) if subset is not pool else np.arange(len(pool))
            rows.append(
                {
                    "name": name,
                    "pairs": len(subset),
                    "steps": given.steps,
                    "seconds": round(seconds + training, 1),
                    "tr@1": round(numbers["retrieval/tr@1"], 2),
                    "ir@1": round(numbers["retrieval/ir@1"], 2),
                    **{key: round(share, 4) for key, share in planted(pool, kept).items()},
                }
            )
    rows = rows[::-1]  # full, random, tldr
    total = round(time.perf_counter() - start, 1)
    write_json(out / "results.json", {"rows": rows, "seconds_total": total, "stages": stages, "seed": given.seed})
    figure = comparison_figure(rows, out / "report.png", title="shapes: a quarter of the pairs, equal steps")
    print("\nseconds of each stage: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in stages.items()))
    print("\n" + comparison_table(rows))
    print(f"\n{total:.0f} s in all; wrote {out / 'results.json'} and {figure}")
    print(
        f"look at {out}/seed{given.seed}/tldr/report.html, then: python select.py data=folder data.root=your/pictures"
    )


if __name__ == "__main__":
    main()
