import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tldr.data import export as exporting
from tldr.data.base import Bad, Row
from tldr.data.export import export
from tldr.data.folder import Folder
from tldr.data.images import ImageStore
from tldr.data.loading import PairsDataset
from tldr.data.pool import read_pool
from tldr.data.webdataset import Webdataset
from tldr.pairs import Pairs


def pack(path, files, **options):
    """A tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, **{"mode": "w", **options}) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key, picture=b"picture", **facts):
    """The files of a sample as img2dataset writes them."""
    record = {"caption": f"of {key}", "key": key, "status": "success", "error_message": None, **facts}
    return [
        (f"{key}.jpg", picture),
        (f"{key}.json", json.dumps(record).encode()),
        (f"{key}.txt", f"of {key}".encode()),
    ]


def good(reader) -> list[Row]:
    """The rows of a reader that has no bad ones."""
    rows = list(reader.rows())
    assert [row for row in rows if isinstance(row, Bad)] == []
    return rows


def pool_of(root, **options):
    return read_pool(Webdataset(root), **{"max_bad_fraction": 0.9, "progress": False, **options})


# ---------------------------------------------------------------- what is whole


def test_what_was_exported_is_read_back(tiny_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD_PAIRS", 8)
    subset = tiny_pool.take(np.arange(3, 300, 10))
    (folder,) = export(subset, tmp_path, ["webdataset"])
    again = pool_of(folder).pairs
    for name in ("uid", "caption", "image_digest"):
        assert again.table[name].equals(subset.table[name])
    before, after = ImageStore(subset.root), ImageStore(again.root)
    for one, other in zip(subset.images.to_pylist(), again.images.to_pylist(), strict=True):
        assert before.read(one) == after.read(other)
    assert again.table["key"].to_pylist()[8] == "0000100000"


def test_a_picture_of_several_captions_is_one_when_read_back(tmp_path, picture):
    """Shards hold it once for each of them. Retrieval counts pictures."""
    for number in range(3):
        picture(tmp_path / f"{number}.png", seed=number)
    uids = [f"{row:02d}" for row in range(9)]
    pairs = Pairs.build({"uid": uids, "image": [f"{row // 3}.png" for row in range(9)], "caption": uids}, root=tmp_path)
    (folder,) = export(pairs, tmp_path / "out", ["webdataset"])
    for options, pictures in (({}, [0, 0, 0, 1, 1, 1, 2, 2, 2]), ({"verify": "none"}, list(range(9)))):
        again = pool_of(folder, **options).pairs
        assert again.uids.to_pylist() == uids
        assert PairsDataset(again, image_size=8).image_ids.tolist() == pictures


def test_lines_may_be_captions(tmp_path):
    files = [("0.webp", b"x"), ("0.txt", b"one\n\ntwo\r\nthree"), ("1.webp", b"y"), ("1.txt", b" \n")]
    pack(tmp_path / "0.tar", [*files, *sample("2", uid="u")])
    found = good(Webdataset(tmp_path, lines=True))
    assert [(row.caption, row.uid) for row in found] == [
        ("one", None), ("two", None), ("three", None), ("", None), ("of 2", "u")
    ]  # fmt: skip
    assert len({row.image for row in found}) == 3
    assert [row.caption for row in good(Webdataset(tmp_path))] == ["one\n\ntwo\r\nthree", " ", "of 2"]
    pack(tmp_path / "1.tar", [("3.jpg", b"x"), ("3.txt", b"a\nb"), ("3.json", b'{"uid": 7}')])
    assert [row.uid for row in good(Webdataset(tmp_path, shards="1.tar", lines=True))] == ["7#0", "7#1"]
    with pytest.raises(ValueError, match=r"data\.lines='yes'"):
        Webdataset(tmp_path, lines="yes")  # pyright: ignore[reportArgumentType]


def test_hostile_captions_survive(tmp_path, picture, all_hostile):
    captions = [*all_hostile, "\ufeffmarked", "ended\n", "ended\r\n"]
    picture(tmp_path / "a.jpg")
    columns = {
        "uid": [f"{i:02d}" for i in range(len(captions))],
        "image": ["a.jpg"] * len(captions),
        "caption": captions,
    }
    (folder,) = export(Pairs.build(columns, root=tmp_path), tmp_path / "out", ["webdataset"])
    assert pool_of(folder).pairs.captions.to_pylist() == captions


def test_img2datasets_layout(tmp_path, picture):
    data = picture(tmp_path / "a.jpg").read_bytes()
    shards = tmp_path / "cc3m"
    pack(shards / "00000.tar", sample("000000000", data, width=24) + sample("000000001", data, similarity=0.3))
    pack(shards / "00001.tar", sample("000010000", data, uid="f00", exif={"a": [1]}, width="wide"))
    for name in ("00000.parquet", "00000_stats.json", "._00000.tar"):
        (shards / name).write_bytes(b"?")
    rows = list(Webdataset(shards).rows())
    key = {"key": "000000000", "status": "success", "error_message": None}
    assert rows[0] == Row(
        f"00000.tar#bytes=512+{len(data)}", "of 000000000", None, {**key, "width": 24}, "00000.tar sample 000000000"
    )
    pool = pool_of(shards, max_bad_fraction=0)
    assert len(pool.pairs) == 3
    assert "f00" in pool.pairs.uids.to_pylist()
    table = {row["key"]: row for row in pool.pairs.table.to_pylist()}
    assert table["000000001"]["similarity"] == 0.3
    assert [table[key]["width"] for key in ("000000000", "000000001", "000010000")] == ["24", None, "wide"]
    assert json.loads(table["000010000"]["exif"]) == {"a": [1]}


def test_captions_of_the_json(tmp_path):
    facts = json.dumps({"caption": "plain", "better": "fine", "uid": 7}).encode()
    files = [("a.png", b"1"), ("a.json", facts), ("b.png", b"2"), ("b.txt", b"text"), ("b.json", facts)]
    pack(tmp_path / "0.tar", files)
    assert [(row.caption, row.uid, row.extra) for row in good(Webdataset(tmp_path))] == [
        ("plain", "7", {"better": "fine"}),
        ("text", "7", {"better": "fine"}),
    ]
    rows = good(Webdataset(tmp_path, caption_column="better"))
    assert [(row.caption, row.extra) for row in rows] == [("fine", {"caption": "plain"})] * 2
    (error, _) = Webdataset(tmp_path, caption_column="best").rows()
    assert error == Bad("0.tar#bytes=512+1", b"", "caption", "no caption: 0.tar sample a", "7")


def test_a_folder_and_its_tar_have_the_same_captions(tmp_path, picture):
    for name, text in {"a": b"one\n", "x.y/b": b"two\r\n", "x.y/c": b"\xef\xbb\xbfthree\n\n"}.items():
        picture(tmp_path / "plain" / f"{name}.PNG")
        (tmp_path / "plain" / f"{name}.txt").write_bytes(text)
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "all.tar", "w") as tar:
        tar.add(tmp_path / "plain", ".")
    one, two = (sorted(row.caption for row in read(tmp_path / name).rows()) for read, name in
                ((Folder, "plain"), (Webdataset, "packed")))  # fmt: skip
    assert one == two == ["one", "three\n", "two"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_every_format(tmp_path, format):
    key = "/".join(["deep" * 10, "näme" * 10])
    pack(tmp_path / "0.tar", [(f"{key}.jpg", b"12345"), (f"{key}.txt", b"c"), *sample("b", b"678")], format=format)
    rows = good(Webdataset(tmp_path))
    assert [row.where for row in rows] == [f"0.tar sample {key}", "0.tar sample b"]
    assert [ImageStore(tmp_path).read(row.image) for row in rows] == [b"12345", b"678"]


def test_the_pool_does_not_depend_on_who_was_written_first(tmp_path, picture):
    shards = {}
    for seed in range(4):
        data = picture(tmp_path / "a.jpg", seed).read_bytes()
        shards[f"{'ab'[seed % 2]}/{seed}.tar"] = sample(f"{seed}", data)
    for folder, names in (("one", list(shards)), ("two", list(shards)[::-1])):
        for shard in names:
            pack(tmp_path / folder / shard, shards[shard])
    one, two = (Webdataset(tmp_path / folder) for folder in ("one", "two"))
    assert list(one.rows()) == list(two.rows())
    assert [row.where.split()[0] for row in good(one)] == ["a/0.tar", "a/2.tar", "b/1.tar", "b/3.tar"]
    assert pool_of(tmp_path / "one").pairs.hash == pool_of(tmp_path / "two").pairs.hash


# ---------------------------------------------------------------- what is not


def test_samples_that_lack_something_are_bad(tmp_path):
    files = [
        ("a.jpg", b"1"),
        ("b.txt", b"alone"),
        *sample("c", uid="u", status="failed_to_download", error_message="HTTP Error 404: Not Found")[1:],
        ("d.jpg", b"1"), ("d.png", b"2"), ("d.txt", b"two"),
        ("e.jpg", b"1"), ("e.mask.png", b"2"), ("e.txt", b"fine"),
        ("f.jpg", b"1"), ("f.json", b"{"), ("f.txt", b"f"),
        ("g.jpg", b"1"), ("g.json", b"[1]"), ("g.txt", b"other people's"),
        ("h.jpg", b"1"), ("h.JPG", b"2"), ("h.txt", b"h"),
        (".hidden", b""), ("noending", b""),
    ]  # fmt: skip
    pack(tmp_path / "0.tar", files)
    rows = list(Webdataset(tmp_path).rows())
    assert [row.caption for row in rows if isinstance(row, Row)] == ["fine", "other people's"]
    assert [(row.caption, row.stage, row.error, row.uid) for row in rows if isinstance(row, Bad)] == [
        (b"", "caption", "no caption: 0.tar sample a", None),
        (b"alone", "read", "no image: 0.tar sample b", None),
        (b"of c", "read", "not downloaded: failed_to_download, HTTP Error 404: Not Found, 0.tar sample c", "u"),
        (b"two", "read", "several images: jpg, png in 0.tar sample d", None),
        (b"f", "read", "json cannot be parsed: 0.tar sample f", None),
        (b"h", "read", "repeated file: a second jpg in 0.tar sample h", None),
    ]


def test_a_sample_ends_where_the_key_changes(tmp_path, picture):
    data = picture(tmp_path / "a.jpg").read_bytes()
    pack(tmp_path / "0.tar", [*sample("a", data), *sample("b", data), *sample("a", data), ("b.jpg", data)])
    pool = pool_of(tmp_path)
    assert sorted(pool.pairs.captions.to_pylist()) == ["of a", "of a", "of b"]
    assert [row["error"] for row in pool.quarantine.to_pylist()] == ["no caption: 0.tar sample b"]


def test_a_tar_that_breaks_off_loses_no_sample_in_silence(tmp_path):
    """Cut at every block, and within: what is yielded is right, and one row tells of the rest."""
    files = sample("a", b"x" * 700) + sample("b", b"y" * 1300) + sample("c", b"z")
    whole = pack(tmp_path / "0.tar", files).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the mark of the end begins
    expected = list(Webdataset(tmp_path).rows())
    assert len(expected) == 3
    for cut in sorted({*range(0, end + 512, 512), *range(100, end, 512)}):
        (tmp_path / "0.tar").write_bytes(whole[:cut])
        *found, broken = Webdataset(tmp_path, broken="quarantine").rows()
        assert found == expected[: len(found)]
        assert isinstance(broken, Bad), cut
        assert broken.error.startswith("broken tar: 0.tar breaks off "), cut
        assert f"{'at sample ' + 'abc'[len(found)] if cut >= 512 else 'before its first sample'}: " in broken.error
    (tmp_path / "0.tar").write_bytes(whole[: end + 512])
    assert list(Webdataset(tmp_path).rows()) == expected


def test_what_is_no_tar_costs_no_other_shard(tmp_path):
    whole = pack(tmp_path / "0.tar", sample("a")).read_bytes()
    (tmp_path / "1.tar").write_bytes(b"<html>" * 1000)
    (tmp_path / "2.tar").write_bytes(whole[:2048] + b"garbage!" * 1000)
    pack(tmp_path / "3.tar", [])
    first, _, last = Webdataset(tmp_path, broken="quarantine").rows()
    assert isinstance(first, Row)
    assert isinstance(last, Bad)
    assert last.error == (
        "broken tar: 2.tar breaks off at sample a: neither a header nor the mark of the end at byte 2048 of 10048; "
        "all that follows is lost, fetch it again"
    )


def test_tars_joined_by_cat_are_not_read_in_part(tmp_path):
    one, other = (pack(tmp_path / "0.tar", sample(key)).read_bytes() for key in "ab")
    (tmp_path / "0.tar").write_bytes(one + other)
    with pytest.raises(ValueError, match=r"0\.tar at sample a: more follows the mark of the end at byte \d+: .* cat"):
        list(Webdataset(tmp_path).rows())
    (tmp_path / "0.tar").write_bytes(one + bytes(1 << 21))
    assert len(good(Webdataset(tmp_path))) == 1


def test_shards_that_break_off_stop_the_reading_unless_asked(tmp_path):
    """A tenth of the pairs may be bad, but nobody knows how many a half shard has lost."""
    whole = pack(tmp_path / "0.tar", sample("a") + sample("b")).read_bytes()
    for number in range(1, 8):
        (tmp_path / f"{number}.tar").write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"7 of the 8 shards .* 1\.tar at sample a: .*; and 2 more\. .*data\.broken="):
        list(Webdataset(tmp_path).rows())
    with pytest.raises(ValueError, match=r"data\.broken='skip'; choose from stop, quarantine"):
        Webdataset(tmp_path, broken="skip")


def test_damaged_tars_raise_nothing(tmp_path):
    rng = np.random.default_rng(0)
    whole = pack(tmp_path / "0.tar", sample("a") + sample("b" * 120), format=tarfile.PAX_FORMAT).read_bytes()[:8192]
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        start = 512 * rng.integers(0, 14)
        damaged[start + rng.integers(0, 512, 3)] = rng.integers(0, 256, 3)
        header = damaged[start : start + 512]  # with a sum that holds, so that it is believed
        header[124 + rng.integers(0, 12)] = rng.integers(0, 256)
        header[148:156] = 32
        header[148:156] = np.frombuffer(f"{int(header.sum()):06o}\0 ".encode(), np.uint8)
        (tmp_path / "0.tar").write_bytes(damaged.tobytes())
        assert len(list(Webdataset(tmp_path, broken="quarantine").rows())) < 20


# ---------------------------------------------------------------- which shards


def test_links_are_followed_and_whole_paths_are_patterns(tmp_path):
    pack(tmp_path / "there" / "1.tar", sample("a"))
    pack(tmp_path / "root" / "0.tar", sample("a"))
    (tmp_path / "root" / "link").symlink_to(tmp_path / "there")
    assert [row.image.partition("#")[0] for row in Webdataset(tmp_path / "root").rows()] == ["0.tar", "link/1.tar"]
    whole = str(tmp_path / "root" / "{0..0}.tar")
    assert len(list(Webdataset(tmp_path / "root", shards=whole).rows())) == 1
    for wrong in ("", str(tmp_path / "there" / "1.tar")):
        with pytest.raises(ValueError, match=r"data\.shards=.*: a pattern of files in data\.root="):
            Webdataset(tmp_path / "root", shards=wrong)


def test_a_pattern_takes_some_shards(tmp_path):
    for number in range(8, 12):
        for folder in ("x", "y"):
            pack(tmp_path / folder / f"{number:03d}.tar", sample("a"))

    def names(shards):
        return [path.relative_to(tmp_path).as_posix() for path in Webdataset(tmp_path, shards=shards).shards]

    assert names("x/{009..010}.tar") == ["x/009.tar", "x/010.tar"]
    assert names(["*/008.tar", "y/*.tar"]) == ["x/008.tar", "y/008.tar", "y/009.tar", "y/010.tar", "y/011.tar"]
    assert len(names(None)) == 8
    with pytest.raises(ValueError, match=r"there is no x/012\.tar in .*; give the right data\.root=.* data\.shards="):
        names("x/{009..012}.tar")
    with pytest.raises(ValueError, match=r"there is no z/\*\.tar in"):
        names("z/*.tar")


def test_the_command_in_the_yaml_is_understood(tmp_path):
    pack(tmp_path / "00000.tar", sample("a"))
    conf = str(Path(__file__).parents[2] / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        words = [f"data.root={tmp_path}", 'data.shards="{00000..00000}.tar"', "data.name=laion"]
        reader = instantiate(compose("select", overrides=["data=webdataset", *words]).data)
    assert (reader.name, len(list(reader.rows()))) == ("laion", 1)


@pytest.mark.parametrize("name", ["1.tar.gz", "1.tgz", "1.tar"])
def test_compressed_tars_are_refused(tmp_path, name):
    pack(tmp_path / "0.tar", sample("a"))
    pack(tmp_path / name, sample("b"), mode="w:gz")
    with pytest.raises(ValueError, match=rf"{name} is compressed: .*plain \.tar"):
        list(Webdataset(tmp_path).rows())


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none; give the right one as data\.root="):
        Webdataset(tmp_path / "none")
    with pytest.raises(ValueError, match=r"there is no tar in .*; give the right data\.root="):
        Webdataset(tmp_path)
    pack(tmp_path / "sub" / "0.tar", sample("a"))
    with pytest.raises(ValueError, match=r"no pictures in .* but tars, as 0\.tar: read them by data=webdataset"):
        list(Folder(tmp_path).rows())
