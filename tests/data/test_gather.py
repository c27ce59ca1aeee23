"""A source whose files are as they were is not read again."""

import json
import os

import pytest

from tldr.data.csv import Csv
from tldr.data.gather import gather
from tldr.data.json import Json
from tldr.data.parquet import Parquet
from tldr.data.pool import read_pool
from tldr.data.webdataset import Webdataset

RECORDS = [{"image": f"{i % 3}.jpg", "caption": f"picture {i}", "score": i / 2} for i in range(20)] + [
    {"image": "a.jpg"}
]


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(RECORDS))
    return file


@pytest.fixture
def read(monkeypatch):
    """How often a source has been read."""
    counted = []
    rows = Json.rows
    monkeypatch.setattr(Json, "rows", lambda self: counted.append(self.name) or rows(self))
    return counted


def quiet(reader, cache):
    return gather(reader, cache=cache, progress=False)


def test_it_is_remembered_whole(source, tmp_path, read):
    fresh = gather(Json(source), progress=False)
    first, again = quiet(Json(source), tmp_path / "cache"), quiet(Json(source), tmp_path / "cache")
    assert fresh.equals(first)
    assert fresh.equals(again)
    assert len(read) == 2  # without a cache, and once for it
    assert again["error"].to_pylist()[-1].startswith("no caption")
    assert again["extra.score"].to_pylist()[:3] == [0, 0.5, 1]
    pools = [
        read_pool(Json(source), cache=cache, verify="none", progress=False) for cache in (None, tmp_path / "cache")
    ]
    assert pools[0].pairs.table.equals(pools[1].pairs.table)
    assert pools[0].quarantine.equals(pools[1].quarantine)
    assert len(read) == 3


def test_what_changes_is_read_again(source, tmp_path, read):
    cache = tmp_path / "cache"
    quiet(Json(source), cache)
    before = source.stat()
    source.write_text(json.dumps([*RECORDS[:-1], {"image": "b.jpg"}]))  # as long
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert quiet(Json(source), cache)["image"].to_pylist()[-1] == "b.jpg"
    (tmp_path / "b.json").write_text(json.dumps(RECORDS[:1]))
    assert quiet(Json([source, tmp_path / "b.json"]), cache).num_rows == 22
    assert quiet(Json(source, caption_column="image"), cache)["caption"].to_pylist()[0] == b"0.jpg"
    assert len(read) == 4


def test_what_changes_while_it_is_read_is_not_remembered(source, tmp_path, monkeypatch):
    rows = Json.rows

    def written_meanwhile(self):
        yield from rows(self)
        source.write_text("[]")

    with monkeypatch.context() as patch:
        patch.setattr(Json, "rows", written_meanwhile)
        assert quiet(Json(source), tmp_path / "cache").num_rows == 21
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert quiet(Json(source), tmp_path / "cache").num_rows == 0


def test_what_fails_is_not_remembered(source, tmp_path):
    source.write_text(json.dumps(RECORDS)[:-20])
    for _ in range(2):
        with pytest.raises(ValueError, match="JSON"):
            quiet(Json(source), tmp_path / "cache")


@pytest.mark.parametrize(
    ("make", "file"), [(Csv, "a.csv"), (Json, "a.json"), (Parquet, "a.parquet"), (Webdataset, "0.tar")]
)
def test_readers_of_large_sources_name_their_files(make, file, tmp_path):
    """What a reader is made with is told in values that are the same in another process."""
    (tmp_path / file).write_bytes(b"image,caption")
    reader = make(tmp_path if make is Webdataset else tmp_path / file)
    assert [path.name for path in reader.sources()] == [file]
    assert " at 0x" not in reader.made_with
