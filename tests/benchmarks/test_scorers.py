import json

import numpy as np
import polars as pl
import pytest


def test_auc_is_that_of_all_pairs_of_a_right_and_a_wrong_one(module):
    rng = np.random.default_rng(0)
    wrong = rng.random(60) < 0.4
    score = 5 * rng.normal(size=60) - 3 * wrong
    won = np.mean([a > b for a in score[~wrong] for b in score[wrong]])
    found = module("scorers").told(score, wrong)
    assert found["auc"] == pytest.approx(won)
    assert found["best_0.1"] == wrong[np.argsort(-score)[:6]].mean()


def test_every_score_is_held_against_what_was_planted(benchmark, module, tmp_path):
    names = module("scorers").SCORES
    steps = [f"{scorer}training.max_steps=2" for scorer in ("", "scorers.clip.", "scorers.blip.")]
    coded = [name for name, (_, *said) in names.items() if "selector=tldr" in said and "model=captioner" not in said]
    rows = []
    for scores, own in ((coded, ["model.quantizer.after=0"]), ([name for name in names if name not in coded], [])):
        words = "--data shapes --cache cache --out out --select data.size=64 training.batch_size=32"
        benchmark("scorers", "--scores", *scores, *words.split(), *steps, *own)
        rows += json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
        for name in scores:
            assert f"| shapes | {name} | " in (tmp_path / "out" / "results.md").read_text()
    assert sorted(row["score"] for row in rows) == sorted(names)
    found = [pl.read_parquet(file) for file in (tmp_path / "out").glob("*/decisions.parquet")]
    columns = {column for column, *_ in names.values()}
    scores = {(c, *decisions[c]) for decisions in found for c in columns.intersection(decisions.columns)}
    assert len(found) == len(names) <= len(scores)  # no score is another one under a second name
    assert all(0.1 < row["auc"] < 0.9 for row in rows)
