"""The benchmark of distillation, tiny: every number it promises is there. What the numbers are, the benchmark shows."""

from __future__ import annotations

import json

WORDS = (
    "--width 4 --pictures 10 --iterations 2 --size 200 --validation 20 --test-size 50 --beginnings 2 --epochs 1"
    " --batch-size 50"
)


def test_a_row_for_everything_that_teaches(benchmark, tmp_path, test_data):
    def run() -> str:
        return benchmark("distillation", *WORDS.split(), "--out", "out", TLDR_TEST_DATA=str(test_data))

    said = run()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["what"] for row in rows] == [
        "distilled, random",
        "distilled, random, as PNG",
        "distilled, fixed, own beginning",
        "distilled, fixed, other beginnings",
        "random real, as many steps",
        "random real, best number of steps",
        "k-means, as many steps",
        "k-means, best number of steps",
        "mean of each class, as many steps",
        "mean of each class, best number of steps",
        "everything",
    ]
    assert all(0 <= value <= 100 for row in rows for value in row["accuracies"])
    assert {row["steps"] for row in rows if "as many steps" in row["what"] or "distilled" in row["what"]} == {3}
    assert "| distilled, random | 3 |  | " in (tmp_path / "out" / "results.md").read_text()
    assert said.count("distilling 10 pictures") == 2
    again = run()
    assert "distilling" not in again  # what is there is not computed again
    assert "looking for its rate" not in again
