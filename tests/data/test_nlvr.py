import gzip
import json
import tarfile

import pytest

from tldr.data.base import Bad, Row
from tldr.data.images import ImageStore
from tldr.data.nlvr import Nlvr
from tldr.data.pool import read_pool

LINES = [
    {"identifier": "10-0", "directory": "2", "sentence": "a tower", "label": "true"},
    {"identifier": "10-1", "directory": "2", "sentence": "a tower", "label": "false"},
    {"identifier": "11-0", "directory": "0", "sentence": "a box", "label": "perhaps"},
    {"directory": "0", "sentence": "whose", "label": "true"},
]


@pytest.fixture
def folder(tmp_path, picture):
    """A dev set with one drawing missing."""
    names = [f"{name}-{k}" for name in ("2/dev-10-0", "2/dev-10-1") for k in range(6)]
    for number, name in enumerate(names[:-1]):
        picture(tmp_path / "dev" / "images" / f"{name}.png", number)
    lines = [json.dumps(line) for line in LINES]
    (tmp_path / "dev" / "dev.json").write_text("\n".join([*lines, "broken"]) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def packed(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    with tarfile.open(root / "dev.tar", "w") as tar:
        tar.add(folder / "dev", "dev")
    return root


def test_a_folder_and_its_tar_are_the_same_pool(folder, packed):
    pools = [read_pool(Nlvr(root), max_bad_fraction=0.9, progress=False) for root in (folder, packed)]
    for pool in pools:
        assert (pool.read, len(pool.pairs), pool.quarantine.num_rows) == (20, 11, 9)
        kinds = [row["error"].partition(":")[0] for row in pool.quarantine.to_pylist()]
        assert sorted(kinds) == sorted(
            ["missing file"] + ["label is neither true nor false"] * 6 + ["no identifier"] * 2
        )
    one, two = ({row["uid"]: row for row in pool.pairs.table.to_pylist()} for pool in pools)
    assert one.keys() == two.keys()
    assert all(one[uid]["image_digest"] == two[uid]["image_digest"] for uid in one)
    assert one["dev-10-1-3"]["identifier"] == "dev-10"  # of the sentence
    assert [one[uid]["label"] for uid in ("dev-10-0-5", "dev-10-1-0")] == [True, False]


def test_rows_of_a_folder(folder):
    rows = list(Nlvr(folder).rows())
    first = {"label": True, "identifier": "dev-10"}
    assert rows[0] == Row("dev/images/2/dev-10-0-0.png", "a tower", "dev-10-0-0", first, "dev.json line 1")
    assert rows[-1] == Bad("", b"", "read", "no identifier: dev.json line 5")


def test_what_is_not_there_is_named(folder, packed):
    with pytest.raises(ValueError, match=r"data\.split=test: there is neither a folder test nor a test\.tar"):
        Nlvr(folder, split="test")
    (folder / "dev" / "dev.json").unlink()
    with pytest.raises(ValueError, match=r"there is no .*dev\.json; .* data\.root="):
        list(Nlvr(folder).rows())
    whole = (packed / "dev.tar").read_bytes()
    (packed / "dev.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match=r"dev\.tar is compressed"):
        list(Nlvr(packed).rows())
    (packed / "dev.tar").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"dev\.tar is not a complete tar"):
        list(Nlvr(packed).rows())
    (packed / "dev.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"dev\.tar is not a complete tar"):
        list(Nlvr(packed).rows())


@pytest.mark.parametrize(("split", "sentences", "unique", "true"), [("dev", 989, 267, 547), ("test", 990, 266, 556)])
def test_the_real_tars(test_data, split, sentences, unique, true):
    root = test_data / "nlvr"
    if not (root / f"{split}.tar").is_file():
        pytest.skip(f"no {split}.tar in {root}")
    pool = read_pool(Nlvr(root, split=split), verify="exists", progress=False)
    assert (pool.read, len(pool.pairs)) == (6 * sentences, 6 * sentences)
    assert pool.pairs.column("label").sum() == 6 * true
    assert len(set(pool.pairs.column("identifier"))) == unique  # as the corpus's own script counts
    store = ImageStore(pool.pairs.root)
    for row in range(0, len(pool.pairs), 500):
        assert store.load(pool.pairs.images[row].as_py()).size == (400, 100)
