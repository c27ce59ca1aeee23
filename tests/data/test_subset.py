from dataclasses import replace

import numpy as np
import pytest

from tldr.data.pool import read_pool
from tldr.data.subset import Subset


def test_a_subset_is_read_as_it_was_written(tiny_pool, tmp_path):
    kept = tiny_pool.take(np.arange(0, len(tiny_pool), 7), provenance={"names": {"data": "shapes"}})
    kept.write(tmp_path)
    pool = read_pool(Subset(tmp_path), progress=False)
    assert pool.quarantine.num_rows == 0
    assert pool.pairs.table.equals(kept.table)
    assert pool.pairs.hash == kept.hash
    assert pool.pairs.root == kept.root


def test_where_there_is_none_it_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"no pairs at .*; `python select\.py .* writes them"):
        Subset(tmp_path)
    (tmp_path / "annotations.json").write_text("[]")
    with pytest.raises(ValueError, match=r"give the folder that select\.py has written"):
        Subset(tmp_path / "annotations.json")


def test_pictures_that_have_moved_can_be_linked(tiny_pool, tmp_path):
    folder = replace(tiny_pool.take(np.arange(9)), root=str(tmp_path / "gone")).write(tmp_path / "kept")
    with pytest.raises(
        ValueError, match=r"9 x image: missing file.*\nIf the pictures lie elsewhere, put a link in .*/gone"
    ):
        read_pool(Subset(folder), progress=False)
