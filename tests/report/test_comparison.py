import re

import numpy as np
import pytest
from PIL import Image

from tldr.report.comparison import comparison_figure, comparison_table, markdown_table

ROWS = [
    {"name": "full", "pairs": 16000, "steps": 300, "seconds": 63.2, "tr@1": 8.4, "ir@1": 7.25, "mismatched": 0.4,
     "duplicates": 0.4},
    {"name": "tldr", "pairs": 4000, "steps": 300, "seconds": 261.0, "tr@1": 63.5, "ir@1": 100.0, "mismatched": 0.004,
     "duplicates": 0.0},
]  # fmt: skip
BARE = [{key: row[key] for key in ("name", "pairs", "steps", "tr@1", "ir@1")} for row in ROWS]


def test_table_is_aligned():
    lines = comparison_table(ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["subset", "pairs", "steps", "seconds", "TR@1", "IR@1", "mismatched", "duplicates"]
    assert lines[2].split() == ["full", "16,000", "300", "63", "8.4", "7.2", "40.0%", "40.0%"]
    for name in ("pairs", "IR@1"):  # numbers end where their heading ends
        end = lines[0].index(name) + len(name)
        assert all(line[end - 1].isdigit() and line[end] == " " for line in lines[2:])


def test_columns_that_nothing_fills_are_left_out():
    assert comparison_table(BARE).splitlines()[0].split() == ["subset", "pairs", "steps", "TR@1", "IR@1"]
    assert comparison_table([ROWS[0], BARE[1]]).splitlines()[3].split()[-2:] == ["–", "–"]


def test_markdown():
    head, rule, full, _ = markdown_table(ROWS).splitlines()
    assert head.count("|") == rule.count("|") == full.count("|") == 9
    assert re.fullmatch(r"\| --- \|( ---: \|){7}", rule)
    assert full.startswith("| full | 16,000 | 300 |")


@pytest.mark.parametrize("rows", [ROWS, BARE, [ROWS[1]], [*ROWS, {**ROWS[0], "name": "semdedup"}]])
def test_figure(tmp_path, rows):
    path = comparison_figure(rows, tmp_path / "new" / "report.png", title="a quarter")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1600  # sharp on the first screen of a README
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == (31, 111, 222)).all(-1).sum() > 10_000  # TL;DR's bar
    again = comparison_figure(rows, tmp_path / "again.png", title="a quarter")
    assert path.read_bytes() == again.read_bytes()


def test_figure_says_when_the_steps_differ(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("matplotlib.figure.Figure.text", lambda self, x, y, words, **_: said.append(words))
    comparison_figure([ROWS[0], {**ROWS[1], "steps": 900}], tmp_path / "report.png", title="a quarter")
    assert "for different numbers of steps" in said[1]
