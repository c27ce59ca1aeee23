"""The quickstart, tiny: its files hold what they promise. What the numbers are, `make quickstart` shows."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.forked import run_forked

ROOT = Path(__file__).parents[2]


def test_results_and_figure(tmp_path):
    script = ROOT / "benchmarks" / "quickstart.py"
    size = ["--size", "400", "--steps", "3", "--scorer-steps", "260", "--batch-size", "16", "--out", tmp_path / "out"]
    done = run_forked([script, *size], cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stdout[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["full", "random", "tldr"]
    assert [row["pairs"] for row in results["rows"]] == [400, 100, 100]
    assert {row["steps"] for row in results["rows"]} == {3}
    for row in results["rows"]:
        assert set(row) == {"name", "pairs", "steps", "seconds", "tr@1", "ir@1", "mismatched", "duplicates"}
        assert 0 <= row["mismatched"] <= 1
    assert results["rows"][0]["mismatched"] == results["rows"][0]["duplicates"] == 0.4
    assert results["seconds_total"] > sum(row["seconds"] for row in results["rows"])
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "tldr" in done.stdout
