"""A pool holds what can be read, the quarantine the rest; both are the same however the source is ordered."""

import random
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from tldr.data import pool
from tldr.data.base import Bad, Row
from tldr.data.csv import Csv
from tldr.data.pool import read_pool
from tldr.pairs import Pairs, derive_uid


def quarantined(pool) -> list[tuple[str, str, str]]:
    rows = pool.quarantine.to_pylist()
    return [(row["image"], row["stage"], row["error"]) for row in rows]


def quiet(reader, **options):
    return read_pool(reader, **{"verify": "none", "progress": False, "max_bad_fraction": 0.99, **options})


def test_what_is_read_is_kept_or_quarantined_with_its_reason(tmp_path, listed, picture):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.png")
    whole = picture(tmp_path / "cut.jpg", size=64).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.jpg").write_text("<html>")
    rows = [
        Row("a.jpg", "one"),
        Row("a.jpg", "two"),
        Row("b.png", "three", "given"),
        Row("cut.jpg", "half"),
        Row("cut.jpg", "", where="line 5"),
        Row("none.jpg", "gone"),
        Row("page.jpg", "not found"),
        Row("a.jpg", " \t\n", where="line 8"),
        Row("a.jpg", b"caf\xe9".decode("utf-8", "surrogateescape"), where="line 9"),
        Row("a.jpg", "half a \ud83d", where="line 10"),
        Row("", "no picture", where="line 11"),
        Row(b"\xff.jpg".decode("utf-8", "surrogateescape"), "no name", where="line 12"),
        Row("a.jpg", "named badly", "\udcff", where="line 13"),
        Bad("a.jpg", b"\0\xff", "read", "too few: columns", "own"),
    ]
    pool = read_pool(listed(rows, tmp_path), max_bad_fraction=0.9, progress=False, quarantine_to=tmp_path / "out")
    assert sorted(pool.pairs.captions.to_pylist()) == ["one", "three", "two"]
    assert pool.read == len(rows) == len(pool.pairs) + pool.quarantine.num_rows
    errors = sorted((image, stage, error.partition(" is trunc")[0]) for image, stage, error in quarantined(pool))
    assert errors == sorted(
        [
            ("cut.jpg", "image", "truncated or corrupt: image file"),
            ("cut.jpg", "caption", "empty caption: line 5"),
            ("none.jpg", "image", "missing file"),
            ("page.jpg", "image", "not an image: 6 bytes that begin with b'<html>'"),
            ("a.jpg", "caption", "empty caption: line 8"),
            ("a.jpg", "caption", "caption is not UTF-8: byte 0xe9 after 3 characters, line 9"),
            ("a.jpg", "caption", "caption is not UTF-8: lone surrogate U+D83D after 7 characters, line 10"),
            ("", "read", "no image: line 11"),
            ("\\udcff.jpg", "read", "image name is not UTF-8: byte 0xff after 0 characters, line 12"),
            ("a.jpg", "read", "uid is not UTF-8: byte 0xff after 0 characters, line 13"),
            ("a.jpg", "read", "too few: columns"),
        ]
    )
    captions = {row["caption"]: row["uid"] for row in pool.quarantine.to_pylist()}
    assert captions[b"\0\xff"] == "own"
    assert captions[b"caf\xe9"] == derive_uid("a.jpg", b"caf\xe9")
    assert len(set(captions.values())) == len(captions) == 11
    assert pq.read_table(tmp_path / "out" / "quarantine.parquet").equals(pool.quarantine)
    assert pool.summary().startswith("14 pairs read, 3 in the pool, 11 quarantined\n")


def test_too_much_bad_stops_with_all_a_person_needs(tmp_path, listed, picture):
    picture(tmp_path / "a.jpg")
    rows = [Row("a.jpg", f"caption {number}") for number in range(90)]
    rows += [Row("none.jpg", f"caption {number}") for number in range(9)] + [Row("a.jpg", " ", where="line 99")]
    reader = listed(rows, tmp_path, "mine")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"max_bad_fraction=0\.05 allows") as caught:
        read_pool(reader, max_bad_fraction=0.05, quarantine_to=out, progress=False)
    written = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert Counter(row["stage"] for row in written) == {"image": 9, "caption": 1}
    first, missing, empty, where, remedy = str(caught.value).split("\n")
    assert first.startswith(f"10 of 100 pairs of mine at {tmp_path} cannot be read, 10.00%: more than")
    uid = min(row["uid"] for row in written if row["stage"] == "image")
    assert missing == f"       9 x image: missing file, e.g. uid {uid}, image none.jpg"
    assert empty.endswith("image a.jpg: line 99")
    assert where.endswith(str(out / "quarantine.parquet"))
    fraction = float(remedy.rpartition("max_bad_fraction=")[2])
    assert len(read_pool(reader, max_bad_fraction=fraction, progress=False).pairs) == 90


def test_a_source_that_is_refused_leaves_the_quarantine_of_a_finished_run(listed, tmp_path):
    def read(*rows: Row) -> None:
        read_pool(listed(rows, tmp_path), verify="none", progress=False, quarantine_to=tmp_path)

    read(Row("a", "b"))
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(ValueError, match=r"listed in .*quarantine-refused\.parquet"):
        read(Row("a", ""), Row("c", "d"))
    files = [tmp_path / f"quarantine{kind}.parquet" for kind in ("", "-refused")]
    assert [pq.read_table(file).num_rows for file in files] == [0, 1]
    read(Row("a", "b"))
    assert not files[1].exists()


def test_a_source_of_which_nothing_is_left_stops_whatever_is_allowed(listed, tmp_path):
    with pytest.raises(ValueError, match="nothing is left"):
        quiet(listed([Row("a", "")]), max_bad_fraction=1)
    with pytest.raises(ValueError, match="there is not one pair in empty"):
        quiet(listed([], name="empty"))
    (tmp_path / "a.csv").write_text("image,caption\na.png,b\n")
    with pytest.raises(ValueError, match=r"nothing is left[\s\S]*lie elsewhere, say where: data\.images=\.\.\."):
        read_pool(Csv(tmp_path / "a.csv"), progress=False)
    with pytest.raises(ValueError, match="it is one of decode, exists, none"):
        quiet(listed([Row("a", "b")]), verify="all")  # type: ignore[arg-type]


def test_a_pool_does_not_depend_on_the_order_of_its_source(listed):
    rows: list[Row | Bad] = [Row(f"{i % 7}.jpg", f"caption {i}", extra={"score": i / 3, "n": i}) for i in range(40)]
    rows += [Row("a.jpg", "said again", extra={"n": i % 3}) for i in range(5)]  # three are wholly equal to others
    rows += [Row(f"{i}.jpg", "named twice", f"uid{i % 2}", {"n": i}) for i in range(4)]
    rows += [Bad("b.jpg", b"\xff", "read", "no reason")] * 3 + [Row("c.jpg", "", where="here")]
    first = quiet(listed(rows))
    assert len(first.pairs) == 40 + 5 + 2
    assert first.quarantine.num_rows == 2 + 3 + 1
    assert len(set(first.quarantine["uid"].to_pylist())) == 6
    for seed in range(10):
        random.Random(seed).shuffle(rows)
        other = quiet(listed(rows))
        assert other.pairs.hash == first.pairs.hash
        assert other.pairs.table.equals(first.pairs.table)
        assert other.quarantine.equals(first.quarantine)


def test_equal_pairs_are_numbered_and_equal_names_refused(listed):
    pool = quiet(listed([Row("a.jpg", "x")] * 3 + [Row("b.jpg", "y", "u"), Row("c.jpg", "z", "u")]))
    uids = {derive_uid("a.jpg", "x", repeat) for repeat in range(3)}
    assert set(pool.pairs.uids.to_pylist()) == {*uids, "u"}
    assert quarantined(pool) == [("c.jpg", "read", "repeated uid: it stands for a pair of b.jpg already")]


def test_repeated_pairs_are_taken_from_the_table_once(listed, monkeypatch):
    """Each take from a table of many chunks costs a copy of it: one for every repeated pair would be a copy a pair."""
    monkeypatch.setattr("tldr.data.gather._CHUNK", 7)
    taken = []

    class Table:  # pa.Table itself cannot be patched
        def __init__(self, table):
            self.table = table

        def take(self, rows):
            taken.append(len(rows))
            return self.table.take(rows)

    in_order = pool._in_order_of_content
    monkeypatch.setattr(pool, "_in_order_of_content", lambda groups, found: in_order(groups, Table(found)))
    rows = [Row(f"{i % 20}.jpg", "same", None, {"n": i}) for i in range(50)]
    rows += [Row(f"{i}.jpg", "x", f"u{i // 2}", {"url": str(i)}) for i in range(30)]
    random.Random(0).shuffle(rows)
    read = quiet(listed(rows))
    assert taken == [50, 30]
    assert len(read.pairs) == 50 + 15
    numbered = {
        (f"{i}.jpg", n): derive_uid(f"{i}.jpg", "same", repeat)
        for i in range(20)
        for repeat, n in enumerate(sorted(range(i, 50, 20), key=str))
    }
    found = read.pairs.table.to_pylist()
    assert {(one["image"], one["n"]): one["uid"] for one in found if one["caption"] == "same"} == numbered
    assert {one["image"] for one in found if one["caption"] == "x"} == {
        f"{min(2 * i, 2 * i + 1, key=str)}.jpg" for i in range(15)
    }


def test_a_name_is_free_again_if_its_first_picture_cannot_be_read(tmp_path, listed, picture):
    picture(tmp_path / "b.jpg")
    pool = read_pool(
        listed([Row("a.jpg", "x", "u"), Row("b.jpg", "y", "u")], tmp_path), max_bad_fraction=0.5, progress=False
    )
    assert pool.pairs.images.to_pylist() == ["b.jpg"]
    assert quarantined(pool) == [("a.jpg", "image", "missing file")]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_extra_columns_keep_their_types(listed, monkeypatch, chunk):
    monkeypatch.setattr("tldr.data.gather._CHUNK", chunk)
    extras = [
        {"flag": True, "n": 1, "score": 0.5, "word": "a", "mixed": 1, "tags": ["x"], "deep": {"b": [1]}},
        {"flag": False, "n": 2, "score": 1, "word": "\udcffb", "mixed": "two", "tags": [], "deep": {}},
        {"flag": None, "n": 2**62, "score": None, "word": "\0", "mixed": [3], "huge": 2**70},
        {},
        {"image": "its own", "image_digest": "of old", "truth_mismatched": True},
        {"flag": True, "n": -1, "score": 2.5, "mixed": None, "tags": ["y", "z"]},
    ]
    rows = [Row("a.jpg", "x", str(number), extra) for number, extra in enumerate(extras)]
    pairs = quiet(listed(rows)).pairs
    columns = {name: pairs.table[name].to_pylist() for name in pairs.table.column_names}
    assert columns == {
        "uid": list("012345"),
        "image": ["a.jpg"] * 6,
        "caption": ["x"] * 6,
        "deep": ['{"b": [1]}', "{}", None, None, None, None],
        "flag": [True, False, None, None, None, True],
        "huge": [None, None, str(2**70), None, None, None],
        "source_image": [None] * 4 + ["its own", None],
        "mixed": ["1", "two", "[3]", None, None, None],
        "n": [1, 2, 2**62, None, None, -1],
        "score": [0.5, 1.0, None, None, None, 2.5],
        "tags": [["x"], [], None, None, None, ["y", "z"]],
        "truth_mismatched": [None] * 4 + [True, None],
        "word": ["a", "\\udcffb", "\0", None, None, None],
    }
    assert [str(pairs.table.schema.field(name).type) for name in ("flag", "n", "score")] == ["bool", "int64", "double"]


def test_hostile_captions_survive_to_the_disk_and_back(tmp_path, listed, all_hostile):
    pool = quiet(listed([Row("a.jpg", caption, str(i)) for i, caption in enumerate(all_hostile)]))
    opened = Pairs.open(pool.pairs.write(tmp_path))
    assert dict(zip(opened.uids.to_pylist(), opened.captions.to_pylist(), strict=True)) == {
        str(i): caption for i, caption in enumerate(all_hostile)
    }
    assert opened.provenance == {"data": "listed", "read": len(all_hostile), "quarantined": 0}


def test_the_digest_is_of_the_pictures_bytes(tmp_path, listed, picture):
    for name, seed in (("a.jpg", 1), ("b.jpg", 1), ("c.jpg", 2)):
        picture(tmp_path / name, seed)
    rows = [Row(name, caption, name + caption) for name in ("a.jpg", "b.jpg", "c.jpg") for caption in "xy"]
    pool = read_pool(listed(rows, tmp_path), progress=False)
    a, a2, b, b2, c, c2 = pool.pairs.table["image_digest"].to_pylist()
    assert a == a2 == b == b2 != c == c2
    assert len(a) == 32
    assert pool.decoded == 3
    picture(tmp_path / "c.jpg", 3)
    assert read_pool(listed(rows, tmp_path), progress=False).pairs.hash != pool.pairs.hash


def test_exists_asks_for_files_and_decodes_nothing(tmp_path, listed):
    (tmp_path / "a.jpg").write_text("not a picture")
    rows = [Row("a.jpg", "x"), Row("none.jpg", "y")]
    pool = quiet(listed(rows, tmp_path), verify="exists", cache=tmp_path / "cache")
    assert pool.pairs.images.to_pylist() == ["a.jpg"]
    assert pool.decoded == 0
    assert "image_digest" not in pool.pairs.table.column_names
    assert not (tmp_path / "cache").exists()


def test_any_mixture_adds_up(tmp_path, listed, picture):
    good = [picture(tmp_path / f"{number}.jpg", number).name for number in range(5)]
    names = [*good, "none.jpg", ""]
    captions = ["a", "b", "", "\udcff", "c"]
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows: list[Row | Bad] = []
        for _ in range(60):
            uid = str(random.integers(200)) if random.random() < 0.5 else None
            rows.append(Row(str(random.choice(names)), captions[random.integers(5)], uid))
        pool = read_pool(listed(rows, tmp_path), max_bad_fraction=0.99, cache=tmp_path, progress=False)
        assert len(pool.pairs) + pool.quarantine.num_rows == pool.read == 60
        assert set(pool.pairs.images.to_pylist()) <= set(good)
        assert set(pool.pairs.captions.to_pylist()) <= {"a", "b", "c"}
        assert pool.quarantine.column_names == ["uid", "image", "caption", "stage", "error"]
        assert all(column.null_count == 0 for column in pool.quarantine.columns)


def test_a_second_picture_is_verified_as_the_first(tmp_path, listed, picture):
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    seconds = ["1.png", "2.png", "none.png", "cut.png", None, "", "3.png"]
    rows = [Row("0.png", f"caption {n}", str(n), {"image_2": second}) for n, second in enumerate(seconds)]
    rows += [Row("gone.png", "both", "7", {"image_2": "none.png"}), Row("0.png", " ", "8", {"image_2": "1.png"})]
    reader = listed(rows, tmp_path)
    pool = read_pool(reader, max_bad_fraction=0.9, cache=tmp_path / "cache", progress=False)
    assert pool.read == len(rows) == len(pool.pairs) + pool.quarantine.num_rows
    assert pool.pairs.uids.to_pylist() == ["0", "1", "4", "6"]  # a pair without second picture is one
    assert pool.decoded == 5  # 0, 1, 2, 3 and the cut one, each once
    errors = {row["uid"]: row["error"] for row in pool.quarantine.to_pylist()}
    assert errors["2"] == "missing file in image_2: none.png"
    assert errors["3"].startswith("truncated or corrupt in image_2: ")
    assert errors["3"].endswith("cut.png")
    assert errors["5"].startswith("not an image in image_2: a folder")
    assert errors["7"] == "missing file"
    assert "x image: missing file in image_2, e.g." in pool.summary()
    digests = dict(zip(pool.pairs.uids.to_pylist(), pool.pairs.table["image_2_digest"].to_pylist(), strict=True))
    assert digests["4"] is None
    assert len(set(digests.values())) == 4
    assert read_pool(reader, max_bad_fraction=0.9, cache=tmp_path / "cache", progress=False).decoded == 0

    swapped = [Row(row.image, row.caption, row.uid, {"image_2": "3.png"}) for row in rows[:2]]
    same = [Row(row.image, row.caption, row.uid, row.extra) for row in rows[:2]]
    one, two = (read_pool(listed(each, tmp_path), verify="none", progress=False).pairs for each in (same, swapped))
    assert one.hash != two.hash  # other second pictures, another pool
    assert Pairs.open(one.write(tmp_path / "one")).hash == one.hash
    exists = quiet(listed(rows, tmp_path), verify="exists")
    assert exists.pairs.uids.to_pylist() == ["0", "1", "3", "4", "5", "6"]
