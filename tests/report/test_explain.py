import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tldr.report.explain import explained
from tldr.selector.base import Selection


@pytest.fixture
def finished(pool, tmp_path):
    """A selection of 10 of the pool's 40 pairs on disk, its pool in the cache; one pair more is quarantined."""
    folder, cache = tmp_path / "kept", tmp_path / "cache"
    score = np.arange(40, dtype=np.float32) - 20
    score[20:22] = 0.0
    cluster = np.where(np.arange(40) < 38, np.arange(40) % 4, -1)
    reasons = [f"score {s:g}, cut at 10" for s in score]
    selection = Selection(np.arange(30, 40), reasons, {"cluster": cluster, "alignment": score})
    pool.take(selection.rows).write(folder)
    pool.write(cache / "pools" / pool.hash)
    pq.write_table(selection.decisions(pool), folder / "decisions.parquet")
    (folder / "provenance.json").write_text(json.dumps({"pool": pool.hash}))
    bad = {"uid": ["torn"], "image": ["t.png"], "caption": [b"caf\xe9"], "stage": ["image"], "error": ["cut short"]}
    pq.write_table(pa.table(bad), folder / "quarantine.parquet")
    return folder, cache


@pytest.mark.parametrize("gone", [False, True])
def test_a_picture_or_a_key_stands_for_its_pairs(pool, finished, gone):
    """Whoever looks at pictures knows names, and not uids; without the cache those of kept pairs are known."""
    folder, cache = finished
    image = pool.images[35].as_py()
    if gone:
        shutil.rmtree(cache)
    for name in (image, image.rpartition("/")[2]):
        assert "pair-0035 was kept" in explained(folder, name, cache=cache)
    keyed = pool.with_column("key", [f"{row:09}" for row in range(40)])
    keyed.write(folder if gone else cache / "pools" / pool.hash)
    assert explained(folder, "000000003", cache=cache).startswith("pair-0003 was dropped")


def test_a_dropped_pair(finished):
    folder, cache = finished
    assert explained(folder, "pair-0005", cache=cache).splitlines() == [
        "pair-0005 was dropped",
        "  caption    picture 5 of noise of noise",
        "  reason     score -15, cut at 10",
        "  cluster    1: 2 of its 10 pairs were kept",
        "  alignment  -15, percentile 13.8 of the pool",  # five are lower, one is equal
    ]


def test_a_kept_pair_without_cluster(finished):
    folder, cache = finished
    said = explained(folder, "pair-0039", cache=cache)
    assert said.startswith("pair-0039 was kept\n")
    assert "cluster" not in said
    assert "19, percentile 98.8 of the pool" in said


def test_a_single_cluster_says_nothing(finished, pool):
    folder, cache = finished
    alone = Selection(np.arange(30, 40), ["because"] * 40, {"cluster": np.zeros(40, int)})
    pq.write_table(alone.decisions(pool), folder / "decisions.parquet")
    assert "cluster" not in explained(folder, "pair-0005", cache=cache)


def test_nothing_was_dropped_where_pairs_were_made(finished, pool):
    folder, cache = finished
    made = Selection(np.empty(0, np.int64), ["learned from"] * 40)
    pq.write_table(made.decisions(pool), folder / "decisions.parquet")
    said = explained(folder, "pair-0005", cache=cache)
    assert said.startswith("pair-0005 was not kept as it is: this selection made pairs\n")


def test_equal_scores_have_one_percentile(finished):
    folder, cache = finished
    one, other = (explained(folder, f"pair-00{n}", cache=cache).splitlines()[-1] for n in (20, 21))
    assert one == other == "  alignment  0, percentile 52.5 of the pool"


def test_several_uids_are_told_in_their_order(finished):
    folder, cache = finished
    said = explained(folder, ["pair-0007", "torn", "pair-0001"], cache=cache).split("\n\n")
    assert [part.split()[0] for part in said] == ["pair-0007", "torn", "pair-0001"]


def test_a_quarantined_pair(pool, finished):
    folder, cache = finished
    said = explained(folder, "torn", cache=cache)
    assert "torn was quarantined" in said
    assert "stage    image" in said
    assert "error    cut short" in said
    assert "caf\N{REPLACEMENT CHARACTER}" in said
    assert "image    t.png" in said
    assert explained(folder, "t.png", cache=cache) == said  # who looks for the picture knows its name
    shared = {
        "uid": ["mute"],
        "image": [pool.images[5].as_py()],
        "caption": [b""],
        "stage": ["caption"],
        "error": ["empty"],
    }
    pq.write_table(pa.table(shared), folder / "quarantine.parquet")
    both = explained(folder, shared["image"][0], cache=cache).split("\n\n")
    assert [part.partition(" was ")[0] for part in both] == ["pair-0005", "mute"]


def test_an_unknown_uid_has_neighbours(finished):
    folder, cache = finished
    with pytest.raises(ValueError, match=r"uid 'pair-0005x' is not in .*decisions\.parquet.*near it are .*pair-0005"):
        explained(folder, "pair-0005x", cache=cache)
    with pytest.raises(ValueError, match=r"near it are .*torn"):
        explained(folder, "tor", cache=cache)
    with pytest.raises(ValueError, match="uid '17' is not in"):  # as Hydra reads explain=17
        explained(folder, 17, cache=cache)  # pyright: ignore[reportArgumentType]


def test_a_folder_without_selection(tmp_path):
    with pytest.raises(ValueError, match=r"no finished selection in .*nowhere: give explain= with the overrides"):
        explained(tmp_path / "nowhere", "a", cache=tmp_path)


def test_the_pool_may_be_gone_from_the_cache(finished, tmp_path):
    folder, _ = finished
    assert "picture 35 of noise" in explained(folder, "pair-0035", cache=tmp_path / "none")  # kept: it is in the subset
    assert "caption    not at hand: no " in explained(folder, "pair-0005", cache=tmp_path / "none")


def test_a_refined_caption_stands_beside_the_first(finished, pool):
    folder, cache = finished
    kept = pool.take(np.arange(30, 40))
    kept.with_column("caption", [f"better {i}" for i in range(10)]).write(folder)
    assert "picture 31 of noise (refined: better 1)" in explained(folder, "pair-0031", cache=cache)
    told = kept.with_column("caption_original", kept.captions.to_pylist())
    told.with_column("caption", [f"better {i}" for i in range(10)]).write(folder)
    gone = explained(folder, "pair-0031", cache=folder / "gone")
    assert "picture 31 of noise (refined: better 1)" in gone
