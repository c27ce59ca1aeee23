"""The contract of `Pairs`: one canonical order, a hash that means its content, equal files for equal pairs."""

import json
import os
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from tldr.pairs import DIGEST, Pairs, derive_uid, home_of

N = 200
COLUMNS = {
    "uid": [f"{(37 * row) % N:03d}" for row in range(N)],  # not in order
    "image": [f"img/{row}.jpg" for row in range(N)],
    "caption": [f"caption {row} " * (row % 4) for row in range(N)],
    "width": [None if row % 7 == 0 else row for row in range(N)],
    "truth_mismatched": [row % 3 == 0 for row in range(N)],
    DIGEST: [f"{row:032x}" for row in range(N)],
}
HOSTILE = {
    "quotes": "she said \"it's\" 'so' ``here''",
    "tab": "left\tright",
    "newline": "first\nsecond\r\nthird\rfourth",
    "csv": 'a,b;"c"|d',
    "json": '{"caption": [null, "\\u0041"]}',
    "html": "<b>bold</b> &amp; <script>alert(1)</script>",
    "emoji": "a fox 🦊 and a family 👩‍👩‍👧‍👦",
    "right to left": "שלום עולם مرحبا بالعالم \u202eabc",
    "combining": "e\u0301 is not \u00e9",
    "nul": "before\0after",
    "blank": " \u00a0\u200b ",
    "empty": "",
    "long": "x🦊" * 5_000,
}


@pytest.fixture
def pairs():
    return Pairs.build(COLUMNS, root="/data", provenance={"reader": "test"})


def shuffled(columns, seed):
    order = np.random.default_rng(seed).permutation(len(columns["uid"]))
    return {name: [values[row] for row in order] for name, values in columns.items()}


def rechunk(table, *cuts):
    """``table`` with the same rows, cut into chunks at ``cuts``."""
    edges = [0, *cuts, len(table)]
    return pa.concat_tables([table.slice(start, stop - start) for start, stop in pairwise(edges)])


# ---------------------------------------------------------------- canonical order


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_source_does_not_matter(pairs, seed):
    other = Pairs.build(shuffled(COLUMNS, seed), root="/data", provenance={"reader": "test"})
    assert other.uids.to_pylist() == sorted(COLUMNS["uid"])
    assert other.table.equals(pairs.table)
    assert other.hash == pairs.hash


def test_chunks_of_the_source_do_not_matter(pairs):
    table = rechunk(pa.table(shuffled(COLUMNS, 1)), 1, 2, 100)
    assert table["uid"].num_chunks == 4
    assert Pairs.build(table, root="/data").table.equals(pairs.table)


def test_rows_keep_together(pairs):
    at = {uid: row for row, uid in enumerate(COLUMNS["uid"])}
    for name, values in COLUMNS.items():
        assert pairs.table[name].to_pylist() == [values[at[uid]] for uid in pairs.uids.to_pylist()]


def test_two_captions_of_one_image_are_two_pairs():
    captions = ["a dog", "a dog in the snow", "a dog"]
    uids = [derive_uid("dog.jpg", caption, repeat) for caption, repeat in zip(captions, (0, 0, 1), strict=True)]
    assert len(Pairs.build({"uid": uids, "image": ["dog.jpg"] * 3, "caption": captions}, root=".")) == 3


def test_derived_uids_tell_pairs_apart():
    assert derive_uid("a.jpg", "b") == derive_uid("a.jpg", b"b") == "8115c2e3d2465aa5d7c396d2f4bc2c46"
    others = [("a.jp", "gb"), ("a.jpg", "b "), ("b", "a.jpg"), ("a.jpgb", ""), ("a.jpg\udcff", "b")]
    uids = {derive_uid(*other) for other in others} | {derive_uid("a.jpg", "b", repeat) for repeat in range(3)}
    assert len(uids) == len(others) + 3


# ---------------------------------------------------------------- hash


def test_hash_is_the_same_forever():
    """Caches and subsets are found by this hash: a new value here orphans every one that people have on disk."""
    pairs = Pairs.build({"uid": ["b", "a"], "image": ["b.jpg", "a.jpg"], "caption": ["two\n", "🦊"]}, root=".")
    assert pairs.hash == "68af203ccdad8066"


@pytest.mark.parametrize("name", ["uid", "image", "caption", DIGEST])
def test_hash_sees_every_change_of_content(pairs, name):
    for row in (0, N // 2, N - 1):
        values = list(COLUMNS[name])
        values[row] += "x"
        assert Pairs.build({**COLUMNS, name: values}, root="/data").hash != pairs.hash


def test_hash_sees_what_belongs_to_which():
    def hash_of(**columns):
        return Pairs.build(columns, root=".").hash

    plain = hash_of(uid=["a", "b"], image=["1", "2"], caption=["x", "y"])
    assert hash_of(uid=["a", "b"], image=["2", "1"], caption=["x", "y"]) != plain
    assert hash_of(uid=["a", "b"], image=["1", "2"], caption=["y", "x"]) != plain
    assert hash_of(uid=["a", "b"], image=["1", "2"], caption=["xy", ""]) != plain  # only the border moved
    assert hash_of(uid=["a", "b"], image=["1", "2x"], caption=["", "y"]) != plain
    assert hash_of(uid=["a"], image=["1"], caption=["x"]) != plain
    assert hash_of(uid=["a", "b"], image=["1", "2"], caption=["x", "y"], **{DIGEST: ["0", "1"]}) != plain


def test_hash_ignores_what_is_not_content(pairs):
    bare = {name: values for name, values in COLUMNS.items() if name not in ("width", "truth_mismatched")}
    assert Pairs.build(bare, root="/elsewhere", provenance={"reader": "other"}).hash == pairs.hash
    assert pairs.with_column("width", np.arange(N)).hash == pairs.hash
    assert pairs.with_column("truth_mismatched", np.ones(N, bool)).hash == pairs.hash
    assert pairs.with_column("caption", ["new"] * N).hash != pairs.hash


def test_hash_is_the_same_beyond_one_step(monkeypatch, tmp_path):
    monkeypatch.setattr("tldr.pairs._HASH_ROWS", 64)
    pairs = Pairs.build(COLUMNS, root="/data")
    cut = Pairs(rechunk(pairs.table, 63, 64, 150), pairs.root)
    assert cut.hash == pairs.hash
    reopened = Pairs.open(pairs.write(tmp_path))
    assert reopened.uids.num_chunks == 4
    assert Pairs(reopened.table, reopened.root).hash == pairs.hash  # computed anew, not taken from the file


# ---------------------------------------------------------------- on disk


def test_write_and_open_give_the_same_pairs(pairs, tmp_path):
    file = pairs.write(tmp_path / "new" / "folder")
    assert file == tmp_path / "new" / "folder" / "pairs.arrow"
    for path in (file, file.parent, str(file)):
        opened = Pairs.open(path)
        assert opened.table.equals(pairs.table)
        assert (opened.hash, opened.root, opened.provenance) == (pairs.hash, "/data", {"reader": "test"})


def test_hostile_captions_survive(tmp_path):
    texts = list(HOSTILE.values())
    pairs = Pairs.build({"uid": list(HOSTILE), "image": texts, "caption": texts}, root=".")
    opened = Pairs.open(pairs.write(tmp_path))
    assert dict(zip(opened.uids.to_pylist(), opened.captions.to_pylist(), strict=True)) == HOSTILE
    assert dict(zip(opened.uids.to_pylist(), opened.images.to_pylist(), strict=True)) == HOSTILE


def test_equal_pairs_are_equal_bytes(pairs, tmp_path):
    expected = pairs.write(tmp_path / "pairs.arrow").read_bytes()
    ways = {
        "another order": Pairs.build(shuffled(COLUMNS, 5), root="/data", provenance={"reader": "test"}),
        "other chunks": Pairs(rechunk(pairs.table, 3, 50, 51), pairs.root, pairs.provenance),
        "reopened": Pairs.open(tmp_path),
        "a slice of more": Pairs(pa.concat_tables([pairs.table] * 3).slice(N, N), pairs.root, pairs.provenance),
    }
    for way, same in ways.items():
        assert same.write(tmp_path / "same.arrow").read_bytes() == expected, way
    other = pairs.take(np.arange(N - 1))
    assert other.write(tmp_path / "other.arrow").read_bytes() != expected


def test_a_slice_writes_as_if_built(pairs, tmp_path):
    """Bit-packed columns are cut inside a byte: its other bits must not reach the file."""
    (first, *_) = pairs.batches(13)
    built = Pairs.build({name: pairs.table[name].to_pylist()[:13] for name in COLUMNS}, root="/data")
    sliced = Pairs(first.table, "/data")
    assert sliced.write(tmp_path / "a.arrow").read_bytes() == built.write(tmp_path / "b.arrow").read_bytes()


def test_open_maps_the_file_and_costs_no_memory(tmp_path):
    rows = 100_000
    uids = [f"{row:08d}" for row in range(rows)]
    columns = {"uid": uids, "image": uids, "caption": ["a caption of some length"] * rows}
    file = Pairs.build(columns, root=".").write(tmp_path)
    assert file.stat().st_size > 4_000_000
    before = pa.total_allocated_bytes()
    pairs = Pairs.open(file)
    parts = list(pairs.batches(10_000))
    assert parts[7].uids[5].as_py() == "00070005"
    assert pairs.without_truth().hash == pairs.hash
    assert pa.total_allocated_bytes() - before < 10_000


def test_a_failed_write_leaves_what_was_there(pairs, tmp_path, monkeypatch):
    class FullDisk(pa.ipc.RecordBatchFileWriter):
        def write_table(self, *args):
            super().write_table(*args)
            raise OSError("no space left")

    expected = pairs.write(tmp_path).read_bytes()
    monkeypatch.setattr(pa.ipc, "new_file", FullDisk)
    with pytest.raises(OSError, match="no space left"):
        pairs.take(np.arange(5)).write(tmp_path)
    assert (tmp_path / "pairs.arrow").read_bytes() == expected
    assert os.listdir(tmp_path) == ["pairs.arrow"]


def test_no_pairs_are_pairs_too(tmp_path):
    none = Pairs.build({"uid": [], "image": [], "caption": []}, root=".")
    opened = Pairs.open(none.write(tmp_path))
    assert (len(opened), opened.hash, list(opened.batches(3))) == (0, none.hash, [])
    assert len(opened.take(np.array([]))) == 0


# ---------------------------------------------------------------- taking part of it


def test_take_is_canonical_and_remembers_its_parent(pairs):
    subset = pairs.take(np.array([9, 3, 150, 3]))
    assert subset.uids.to_pylist() == ["003", "009", "150"]
    assert subset.provenance == {"reader": "test", "parent": pairs.hash}
    assert subset.hash == Pairs.build(subset.table, root="/elsewhere").hash != pairs.hash
    assert pairs.take(np.arange(3), provenance={"selector": "x"}).provenance == {"selector": "x", "parent": pairs.hash}
    assert json.loads(json.dumps(subset.provenance)) == subset.provenance


def test_rows_of_is_the_way_back(pairs):
    assert pairs.rows_of(["150", "003", "150"]).tolist() == [150, 3, 150]
    subset = pairs.take(np.array([150, 3]))
    np.testing.assert_array_equal(pairs.rows_of(subset.uids.to_pylist()), [3, 150])


def test_batches_cover_all_pairs_once(pairs):
    parts = list(pairs.batches(64))
    assert [len(part) for part in parts] == [64, 64, 64, 8]
    assert [uid for part in parts for uid in part.uids.to_pylist()] == pairs.uids.to_pylist()
    assert len({part.hash for part in parts} | {pairs.hash}) == 5


def test_selectors_do_not_see_the_truth(pairs):
    seen = pairs.without_truth()
    assert "truth_mismatched" in pairs.table.column_names
    assert seen.table.column_names == [name for name in COLUMNS if name != "truth_mismatched"]
    assert seen.hash == Pairs(seen.table, seen.root).hash == pairs.hash


def test_with_column_leaves_the_original_alone(pairs):
    changed = pairs.with_column("caption", ["same"] * N).with_column("caption_original", pairs.captions)
    assert set(changed.captions.to_pylist()) == {"same"}
    assert changed.table["caption_original"].to_pylist() == pairs.captions.to_pylist() != changed.captions.to_pylist()
    np.testing.assert_array_equal(changed.column("truth_mismatched"), pairs.table["truth_mismatched"].to_numpy())


# ---------------------------------------------------------------- more than 2 GiB

DEEP = {  # the columns that a source may bring, and what they become
    "exif": (pa.string(), pa.large_string(), "x"),
    "thumbnail": (pa.binary(), pa.large_binary(), b"x"),
    "tags": (pa.list_(pa.string()), pa.large_list(pa.large_string()), ["x", None]),
    "lists": (pa.list_(pa.list_(pa.binary())), pa.large_list(pa.large_list(pa.large_binary())), [[b"x"], []]),
    "boxes": (pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 2), [0.5, 1.5]),
    "names": (pa.list_(pa.string(), 2), pa.list_(pa.large_string(), 2), ["x", "y"]),
    "half": (pa.large_list(pa.string()), pa.large_list(pa.large_string()), ["x"]),
    "place": (pa.struct({"at": pa.string()}), pa.struct({"at": pa.large_string()}), {"at": "x"}),
    "score": (pa.float32(), pa.float32(), 0.5),
    "nothing": (pa.null(), pa.null(), None),
}


def test_no_column_has_32_bit_offsets(pairs, tmp_path):
    """Arrow joins the chunks of what it takes rows from: a column of `pa.string` would overflow at 2 GiB."""
    extras = {name: pa.array([value, None] * (N // 2), narrow) for name, (narrow, _, value) in DEEP.items()}
    table = rechunk(pa.table(COLUMNS | extras), 70)
    deep = Pairs.build(table, root="/data", provenance={"reader": "test"})
    assert {name: deep.table.schema.field(name).type for name in DEEP} == {
        name: wide for name, (_, wide, _) in DEEP.items()
    }
    assert deep.hash == pairs.hash
    order = np.argsort(COLUMNS["uid"])
    for name, values in extras.items():
        assert deep.table[name].to_pylist() == values.take(order).to_pylist()
    opened = Pairs.open(deep.write(tmp_path))
    assert opened.table.equals(deep.table)
    assert (opened.hash, opened.provenance) == (deep.hash, deep.provenance)
    assert Pairs.build(deep.table, root="/data").table.equals(deep.table)
    changed = pairs.with_column("note", ["x"] * N).with_column("tags", extras["tags"])
    assert [changed.table.schema.field(name).type for name in ("note", "tags")] == [pa.large_string(), DEEP["tags"][1]]


# ---------------------------------------------------------------- errors say what to do


@pytest.mark.parametrize("name", ["uid", "image", "caption"])
def test_build_names_what_is_missing(name):
    columns = {key: values for key, values in COLUMNS.items() if key != name}
    with pytest.raises(ValueError, match=f"missing: {name}"):
        Pairs.build(columns, root=".")
    with pytest.raises(ValueError, match=f"row 5 has no {name}.*quarantine"):
        Pairs.build({**COLUMNS, name: [*COLUMNS[name][:5], None, *COLUMNS[name][6:]]}, root=".")


def test_build_refuses_one_uid_for_two_pairs():
    with pytest.raises(ValueError, match="uid '007' stands for more than one pair"):
        Pairs.build({**COLUMNS, "uid": ["007" if uid == "150" else uid for uid in COLUMNS["uid"]]}, root=".")


def test_open_says_what_is_wrong(pairs, tmp_path):
    with pytest.raises(ValueError, match=r"no pairs at .*nowhere.*select\.py"):
        Pairs.open(tmp_path / "nowhere.arrow")
    with pytest.raises(ValueError, match=r"no pairs at .*nowhere; .*select\.py .* out=\S*nowhere` writes them"):
        Pairs.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no pairs at .*pairs\.arrow"):
        Pairs.open(tmp_path)

    whole = pairs.write(tmp_path).read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.arrow").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.arrow is not an Arrow file of pairs"):
            Pairs.open(tmp_path / "cut.arrow")

    with pa.ipc.new_file(str(tmp_path / "foreign.arrow"), pairs.table.schema) as writer:
        writer.write_table(pairs.table)
    with pytest.raises(ValueError, match=r"foreign\.arrow was not written by tldr.*data=parquet"):
        Pairs.open(tmp_path / "foreign.arrow")


def test_access_says_what_is_wrong(pairs):
    with pytest.raises(ValueError, match=r"no column 'clip'; they have uid, image"):
        pairs.column("clip")
    with pytest.raises(ValueError, match="uid 'stranger' is not in these 200 pairs"):
        pairs.rows_of(["003", "stranger"])
    for rows in ([0, N], [-1, 3]):
        with pytest.raises(ValueError, match="asked of 200 pairs"):
            pairs.take(np.array(rows))
    for name in ("uid", "image"):
        with pytest.raises(ValueError, match=f"{name} is a pair's identity"):
            pairs.with_column(name, ["x"] * N)


def test_answers_about_unread_pictures_are_filed_by_their_root():
    columns = {"uid": ["a"], "image": ["1.png"], "caption": ["one"]}
    here, there = (Pairs.build(columns, root=root) for root in ("here", "there"))
    assert here.hash == there.hash
    assert here.seen.startswith(here.hash)
    assert here.seen != there.seen
    read = [Pairs.build({**columns, "image_digest": ["ab"]}, root=root) for root in ("here", "there")]
    assert read[0].seen == read[1].seen == read[0].hash


def test_a_file_beside_the_pairs_is_no_folder_of_them(tmp_path):
    (tmp_path / "annotations.json").write_text("[]")
    with pytest.raises(ValueError, match=rf"json: give the folder that select\.py has written, {tmp_path}"):
        home_of(tmp_path / "annotations.json")
