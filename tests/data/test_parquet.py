import datetime
import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tldr.data.base import Bad, Row
from tldr.data.images import ImageStore
from tldr.data.parquet import Parquet
from tldr.data.pool import read_pool


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (seed, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def pool_of(*args, **options):
    reader = Parquet(*args, **{key: options.pop(key) for key in ("images",) if key in options})
    return read_pool(reader, **{"max_bad_fraction": 0.9, "progress": False, **options})


def test_paths_and_extra_columns_with_their_types(tmp_path, picture):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "img" / name)
    columns = {
        "filepath": ["a.jpg", "b.jpg"],
        "TEXT": ["one", "two"],
        "uid": ["u2", "u1"],
        "ok": [True, None],
        "n": pa.array([1, 2], pa.int8()),
        "score": [0.5, 1.0],
        "word": pa.array(["x", "y"]).dictionary_encode(),
        "box": [[0.0, 1.0], []],
        "when": [datetime.datetime(2020, 1, 1), None],
        "truth_mismatched": [False, True],
    }
    write(tmp_path / "a.parquet", columns)
    pool = pool_of(tmp_path / "a.parquet", images=tmp_path / "img")
    assert pool.pairs.uids.to_pylist() == ["u1", "u2"]
    assert pool.pairs.captions.to_pylist() == ["two", "one"]
    for name in ("ok", "n", "score", "box", "when", "truth_mismatched"):
        assert (
            pool.pairs.table[name].to_pylist()
            == list(columns[name] if isinstance(columns[name], list) else columns[name].to_pylist())[::-1]
        )
    assert pool.pairs.table["word"].to_pylist() == ["y", "x"]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("kind", ["image", "jpg", "struct"])
def test_pictures_inside(tmp_path, kind, statistics):
    data = [png(number) for number in range(10)]
    name = "jpg" if kind == "jpg" else "image"
    cells = [{"bytes": one, "path": "gone.png"} for one in data] if kind == "struct" else data
    parts = {"part-0.parquet": slice(0, 7), "part-1.parquet": slice(7, 10)}
    for part, rows in parts.items():
        columns = {name: cells[rows], "caption": [str(number) for number in range(10)][rows]}
        write(tmp_path / part, columns, row_group_size=3, write_statistics=statistics)
    pool = pool_of(str(tmp_path / "part-*.parquet"))
    assert len(pool.pairs) == 10
    store = ImageStore(pool.pairs.root)
    for locator, caption in zip(pool.pairs.images.to_pylist(), pool.pairs.captions.to_pylist(), strict=True):
        assert store.read(locator) == data[int(caption)]
        number = int(caption)
        end = ",column=jpg" if kind == "jpg" else ""
        assert locator == (
            f"part-0.parquet#row={number}{end}" if number < 7 else f"part-1.parquet#row={number - 7}{end}"
        )


@pytest.mark.parametrize("statistics", [True, False])
def test_hugging_faces_structs_hold_bytes_or_paths(tmp_path, picture, statistics):
    picture(tmp_path / "a.jpg")
    cells = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "a.jpg"}, None, {"bytes": None, "path": None}]
    write(tmp_path / "a.parquet", {"image": cells, "caption": list("wxyz")}, write_statistics=statistics)
    write(tmp_path / "b.parquet", {"image": cells[1:2], "caption": ["v"]}, write_statistics=statistics)
    pool = pool_of(tmp_path)
    kept = dict(zip(pool.pairs.captions.to_pylist(), pool.pairs.images.to_pylist(), strict=True))
    assert kept == {"w": "a.parquet#row=0", "x": "a.jpg", "v": "a.jpg"}
    assert [row["error"] for row in pool.quarantine.to_pylist()] == [
        "no image: a.parquet row 2",
        "no image: a.parquet row 3",
    ]


def test_rows_without_picture_or_caption_are_bad(tmp_path):
    columns = {
        "image": pa.array([png(0), None, png(2), b"nothing"]),
        "caption": ["x", "y", None, "z"],
        "uid": list("abcd"),
    }
    write(tmp_path / "a.parquet", columns)
    rows = list(Parquet(tmp_path / "a.parquet").rows())
    assert rows[0] == Row("a.parquet#row=0", "x", "a", {}, "a.parquet row 0")
    assert rows[1] == Bad("", b"y", "read", "no image: a.parquet row 1", "b")
    assert rows[2] == Bad("a.parquet#row=2", b"", "caption", "no caption: a.parquet row 2", "c")
    pool = pool_of(tmp_path / "a.parquet")
    assert {row["uid"]: row["stage"] for row in pool.quarantine.to_pylist()} == {
        "b": "read",
        "c": "caption",
        "d": "image",
    }


def test_nanoseconds_and_columns_of_bytes(tmp_path):
    when = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    mask = pa.array([{"bytes": b"mask", "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": ["a.png"], "caption": ["a"], "when": when, "mask": mask, "digest": [b"1"]})
    table = table.append_column("crops", pa.array([mask.to_pylist()], pa.list_(mask.type)))
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = Parquet(tmp_path / "a.parquet").rows()
    assert isinstance(row, Row)
    assert row.extra == {"when": datetime.datetime(2023, 11, 14, 22, 13, 20, 123456)}


def test_a_name_may_look_like_a_pattern(tmp_path):
    write(tmp_path / "a[1].parquet", {"image": ["a.png"], "caption": ["a"]})
    assert len(list(Parquet(tmp_path / "a[1].parquet").rows())) == 1
    with pytest.raises(ValueError, match=r"data\.annotations=\[\] names no file"):
        Parquet([])


def test_lists_of_captions(tmp_path):
    write(tmp_path / "a.parquet", {"image": ["a.jpg", "b.jpg"], "caption": [["x", "y"], ["z"]], "uid": [1, 2]})
    rows = list(Parquet(tmp_path / "a.parquet").rows())
    assert [(row.uid, row.image, row.caption) for row in rows] == [
        ("1#0", "a.jpg", "x"),
        ("1#1", "a.jpg", "y"),
        ("2", "b.jpg", "z"),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_hostile_captions_survive(tmp_path, all_hostile, kind):
    captions = pa.array(all_hostile, pa.string()).cast(kind)
    write(tmp_path / "a.parquet", {"image": [f"{n}.jpg" for n in range(len(all_hostile))], "caption": captions})
    assert [row.caption for row in Parquet(tmp_path / "a.parquet").rows()] == all_hostile


def test_bytes_that_are_no_utf8_cost_one_caption(tmp_path):
    texts = pa.array([b"fine", b"caf\xe9", b"\xc3\xa9"]).cast(pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 3], texts)
    write(tmp_path / "a.parquet", {"image": ["a", "b", "c"], "caption": texts, "note": texts})
    pool = pool_of(tmp_path / "a.parquet", verify="none")
    assert sorted(pool.pairs.captions.to_pylist()) == ["fine", "é"]
    (bad,) = pool.quarantine.to_pylist()
    assert (bad["caption"], bad["error"]) == (
        b"caf\xe9",
        "caption is not UTF-8: byte 0xe9 after 3 characters, a.parquet row 1",
    )
    write(tmp_path / "b.parquet", {"image": ["a", "b"], "caption": lists})
    assert pool_of(tmp_path / "b.parquet", verify="none").quarantine["caption"].to_pylist() == [b"caf\xe9"]


def test_the_order_of_rows_and_files_does_not_matter(tmp_path, all_hostile):
    rows = [{"image": f"{n % 5}.jpg", "caption": text, "n": n % 7} for n, text in enumerate(all_hostile * 2)]
    pools = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        for part in range(3):
            write(tmp_path / str(seed) / f"{part}.parquet", pa.Table.from_pylist(rows[part::3]))
        pools.append(pool_of(tmp_path / str(seed), verify="none").pairs)
    assert pools[0].hash == pools[1].hash == pools[2].hash
    assert pools[0].table.equals(pools[1].table)


def test_files_may_be_a_folder_a_pattern_or_several(tmp_path):
    for name in ("x/a.parquet", "x/deep/b.parquet", "y/c.parquet"):
        write(tmp_path / name, {"url": [f"http://host/{name}"], "text": ["x"]})
    assert len(Parquet(tmp_path).files) == len(Parquet(tmp_path / "**" / "*.parquet").files) == 3
    assert len(Parquet(tmp_path / "x" / "**").files) == 2
    reader = Parquet(
        [str(tmp_path / "y" / "c.parquet"), str(tmp_path / "x" / "*.parquet"), tmp_path / "x" / "a.parquet"]
    )
    assert [file.name for file in reader.files] == ["a.parquet", "c.parquet"]
    assert reader.root == str(tmp_path)
    assert [row.image for row in reader.rows()] == ["http://host/x/a.parquet", "http://host/y/c.parquet"]


def test_what_is_wrong_names_the_file_and_the_override(tmp_path):
    with pytest.raises(ValueError, match=r"no parquet file at .*none-\*\.parquet; .* data\.annotations="):
        Parquet(tmp_path / "none-*.parquet")
    write(tmp_path / "a.parquet", {"pic": ["a"], "caption": ["b"]})
    with pytest.raises(ValueError, match=r"which of the columns pic, caption is it\? Say so with data\.image_column="):
        list(Parquet(tmp_path / "a.parquet").rows())
    assert len(list(Parquet(tmp_path / "a.parquet", image_column="pic").rows())) == 1
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"a\.parquet is not a complete parquet file"):
        list(Parquet(tmp_path / "a.parquet").rows())


def test_the_real_file_takes_captions_from_any_column(test_data):
    reader = Parquet(test_data / "cifar10" / "test.parquet", caption_column="class")
    pool = read_pool(reader, verify="none", progress=False)
    assert len(pool.pairs) == 10_000
    assert set(pool.pairs.captions.to_pylist()) >= {"cat", "ship"}
    assert ImageStore(pool.pairs.root).load(pool.pairs.images[5].as_py()).size == (32, 32)
    assert str(pool.pairs.table.schema.field("label").type) == "int64"
