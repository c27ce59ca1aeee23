"""The page of made pairs, over a pool of rendered scenes: a few of its pairs, as if they had been made from others."""

import numpy as np
import pyarrow as pa
import pytest

from tldr.report.made import SHOWN, write_made_report

FACTS = {"read": 400, "kept": 6, "compression": 0.985}


@pytest.fixture
def page(tiny_pool, tmp_path):
    def write(count: int, *, began: bool = True) -> str:
        made = tiny_pool.take(np.arange(count))
        columns = {"label": pa.array(["<red>"] * count), "step_size": pa.array([0.0123456] * count)}
        if began:
            columns["began_from"] = tiny_pool.uids.take(pa.array(range(count, 2 * count)))
        for name, values in columns.items():
            made = made.with_column(name, values)
        file = write_made_report(tmp_path, tiny_pool, made, title="scenes, made", facts=FACTS)
        assert file == tmp_path / "report.html"
        return file.read_text(encoding="utf-8")

    return write


def test_every_pair_stands_beside_the_one_it_began_from(page, tiny_pool):
    found = page(6)
    assert found.count("<img src=") == 12
    assert "6 pairs made from 400" in found
    assert "98.5 %" in found
    for row in range(12):  # six made, and the six that these began from
        assert tiny_pool.captions[row].as_py()[:60] in found
    assert "label: &lt;red&gt;" in found
    assert "step size: 0.01235" in found
    assert "image digest" not in found


def test_pairs_of_no_beginning_stand_alone(page):
    found = page(3, began=False)
    assert found.count("<img src=") == 3
    assert "Below: the real pair" not in found


def test_a_sample_is_shown_of_many_and_equal_pairs_give_equal_pages(page):
    found = page(SHOWN + 20)
    assert found.count('<figure class="kept">') == SHOWN
    assert f"{SHOWN} of {SHOWN + 20}" in found
    assert page(SHOWN + 20) == found
