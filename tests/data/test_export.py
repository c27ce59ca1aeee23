import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tldr.data import export as module
from tldr.data.export import clear, export
from tldr.data.images import ImageStore
from tldr.data.json import Json
from tldr.data.pool import read_pool
from tldr.data.webdataset import Webdataset
from tldr.pairs import Pairs


@pytest.fixture
def subset(tiny_pool) -> Pairs:
    return tiny_pool.take(np.arange(3, 300, 10))


def test_annotations_are_read_back(subset, tmp_path):
    (file,) = export(subset, tmp_path, ["annotations"])
    assert file == tmp_path / "annotations.json"
    again = read_pool(Json(file, images=subset.root), progress=False).pairs
    assert again.hash == subset.hash  # uids, locators, captions and the pictures' bytes
    assert not any(name.startswith("truth_") for record in json.loads(file.read_text()) for name in record)


def test_hostile_captions_survive(tmp_path, picture, all_hostile):
    picture(tmp_path / "a.jpg")
    count = len(all_hostile)
    columns = {"uid": [f"{i:02d}" for i in range(count)], "image": ["a.jpg"] * count, "caption": all_hostile}
    count = len(all_hostile)
    columns = {"uid": [f"{i:02d}" for i in range(count)], "image": ["a.jpg"] * count, "caption": all_hostile}
    pairs = Pairs.build(columns, root=tmp_path)
    export(pairs, tmp_path / "out", ["annotations", "webdataset"])
    again = read_pool(Json(tmp_path / "out" / "annotations.json", images=tmp_path), progress=False).pairs
    assert again.captions.to_pylist() == all_hostile
    with tarfile.open(tmp_path / "out" / "shards" / "00000.tar") as tar:
        texts = [tar.extractfile(name).read().decode() for name in tar.getnames() if name.endswith(".txt")]  # pyright: ignore
    assert texts == all_hostile


def test_uids_are_sorted_halves_of_128_bits(subset, tmp_path):
    (file,) = export(subset, tmp_path, ["uids"])
    stored = np.load(file)
    assert stored.dtype == np.dtype("u8,u8")  # DataComp's
    assert [f"{high:016x}{low:016x}" for high, low in stored] == sorted(subset.uids.to_pylist())
    assert np.array_equal(stored, np.sort(stored))


def test_other_uids_have_no_such_form(subset, tmp_path):
    for uid in ("a" * 31, "x" * 32):
        named = Pairs.build({"uid": [uid], "image": ["a"], "caption": ["b"]}, root=".")
        with pytest.raises(ValueError, match=r"exports=uids needs uids of 32 hex digits.* is none: export annotations"):
            export(named, tmp_path, ["uids"])
    assert not list(tmp_path.iterdir())


def test_shards_hold_the_pictures_own_bytes(subset, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_PAIRS", 8)
    (folder,) = export(subset, tmp_path, ["webdataset"])
    assert [file.name for file in sorted(folder.iterdir())] == [f"{i:05d}.tar" for i in range(4)]
    store, found = ImageStore(subset.root), []
    for file in sorted(folder.iterdir()):
        with tarfile.open(file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
        keys = list(dict.fromkeys(name.split(".")[0] for name in members))
        assert list(members) == [f"{key}.{suffix}" for key in keys for suffix in ("png", "txt", "json")]
        for key in keys:
            facts = json.loads(members[f"{key}.json"])
            assert facts["caption"].encode() == members[f"{key}.txt"]
            assert facts["key"] == key
            found.append((facts["uid"], facts["caption"], members[f"{key}.png"]))
    expected = [store.read(image) for image in subset.images.to_pylist()]
    assert found == list(zip(subset.uids.to_pylist(), subset.captions.to_pylist(), expected, strict=True))


def test_shards_of_more_pairs_do_not_stay(subset, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_PAIRS", 10)
    export(subset, tmp_path, ["webdataset"])
    fewer = subset.take(np.arange(5))
    export(fewer, tmp_path, ["webdataset", "annotations"])
    assert len(read_pool(Webdataset(tmp_path / "shards"), progress=False).pairs) == 5
    clear(tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_equal_pairs_give_equal_shards(subset, tmp_path):
    for name in ("one", "two"):
        export(subset, tmp_path / name, ["webdataset"])
    one, two = ((tmp_path / name / "shards" / "00000.tar").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(("format", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")])
def test_the_ending_tells_the_format(tmp_path, format, suffix):
    Image.new("RGB", (4, 4)).save(tmp_path / "picture", format)
    pairs = Pairs.build({"uid": ["u"], "image": ["picture"], "caption": ["c"]}, root=tmp_path)
    export(pairs, tmp_path / "out", ["webdataset"])
    with tarfile.open(tmp_path / "out" / "shards" / "00000.tar") as tar:
        (name,) = (name for name in tar.getnames() if not name.endswith((".txt", ".json")))
        assert name.endswith("." + suffix)
        assert Image.open(io.BytesIO(tar.extractfile(name).read())).format == format  # pyright: ignore


def test_an_unknown_format_is_named(subset, tmp_path):
    with pytest.raises(ValueError, match=r"exports=\['uids', 'csv'\]; it is a list of annotations, uids, webdataset"):
        export(subset, tmp_path, ["uids", "csv"])
    assert not list(tmp_path.iterdir())
    assert export(subset, tmp_path, []) == []
