import csv

import pytest

from tldr.data.base import Bad, Row
from tldr.data.csv import Csv
from tldr.data.pool import read_pool


def write(path, rows, **options):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return path


def found(path, **options):
    return [(row.image, row.caption) for row in Csv(path, **options).rows()]


PAIRS = [("a.jpg", "one, two"), ("b.png", 'say "x"'), ("c.jpg", "three\tfour")]


def test_with_a_header_in_any_order_and_delimiter(tmp_path):
    for delimiter, suffix in ((",", "csv"), ("\t", "tsv"), ("\t", "txt"), (";", "csv"), ("|", "csv"), (",", "txt")):
        rows = [("id", "Caption", "image"), *((i, caption, image) for i, (image, caption) in enumerate(PAIRS))]
        assert found(write(tmp_path / f"a.{suffix}", rows, delimiter=delimiter)) == PAIRS


def test_without_header_the_pictures_are_found_by_their_looks(tmp_path):
    for delimiter, suffix in ((",", "csv"), ("\t", "tsv"), ("\t", "txt")):
        file = write(tmp_path / f"a.{suffix}", PAIRS, delimiter=delimiter)
        assert found(file) == PAIRS
        flipped = write(tmp_path / f"b.{suffix}", [(caption, image) for image, caption in PAIRS], delimiter=delimiter)
        assert found(flipped) == PAIRS
        assert found(flipped, header=False, caption_column=0) == PAIRS


def test_conceptual_captions(tmp_path):
    text = 'a very typical bus station\thttp://host/1.jpg?w=5\n"quoted" start , and end\thttps://host/image/2\n'
    (tmp_path / "Train_GCC-training.tsv").write_text(text)
    assert found(tmp_path / "Train_GCC-training.tsv") == [
        ("http://host/1.jpg?w=5", "a very typical bus station"),
        ("https://host/image/2", '"quoted" start , and end'),
    ]


def test_conceptual_captions_have_no_quoting(tmp_path):
    """A quote that has no end is not given that of another, three lines further on."""
    (tmp_path / "a.tsv").write_text('"stray\thttp://host/1\nsecond\thttp://host/2\nit is so big"\thttp://host/3\n')
    for quotes in (False, True):
        captions = [caption for _, caption in found(tmp_path / "a.tsv", quotes=quotes)]
        assert captions == ['"stray', "second", 'it is so big"']


@pytest.mark.parametrize("titled", [False, True])
def test_captions_of_several_lines_are_whole(tmp_path, titled):
    rows = [("http://host/1", "a dog,\nrunning"), ("http://host/2", "cat, sleeping\nhttp://host/9,on a mat")]
    file = write(tmp_path / "a.csv", [("url", "caption"), *rows] if titled else rows)
    assert found(file) == rows


def test_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv has two columns that are called 'tag': rename one"):
        found(write(tmp_path / "a.csv", [("image", "caption", "tag", "tag"), ("a.jpg", "x", "y", "z")]))


@pytest.mark.parametrize(("option", "value"), [("quotes", "no"), ("header", "yes")])
def test_yes_and_no_are_no_answers(tmp_path, option, value):
    with pytest.raises(ValueError, match=rf"data\.{option}='{value}'; it is true or false"):
        Csv(write(tmp_path / "a.csv", [("a.jpg", "x")]), **{option: value})


@pytest.mark.parametrize(("begins", "how"), [(b"\x1f\x8b", "compressed"), (b"\xff\xfe", "in UTF-16")])
def test_what_is_no_utf8_is_named(tmp_path, begins, how):
    (tmp_path / "a.csv").write_bytes(begins + b"rest")
    with pytest.raises(ValueError, match=rf"a\.csv is {how}: .* and give data\.annotations="):
        Csv(tmp_path / "a.csv")


def test_named_and_numbered_columns(tmp_path):
    rows = [("pic", "short", "long", "key"), ("a", "s", "l", "u1"), ("b", "t", "m", "u2")]
    file = write(tmp_path / "a.csv", rows)
    read = list(Csv(file, image_column="pic", caption_column="long", uid_column="key").rows())
    assert read[0] == Row("a", "l", "u1", {"short": "s"}, "a.csv line 2")
    assert found(file, header=True, image_column=0, caption_column=1) == [("a", "s"), ("b", "t")]
    bare = write(tmp_path / "b.csv", rows[1:])
    read = list(Csv(bare, image_column=0, caption_column=2).rows())
    assert read[0] == Row("a", "l", None, {"column_1": "s", "column_3": "u1"}, "b.csv line 1")
    read = list(Csv(bare, image_column=0, caption_column=2, uid_column=3).rows())
    assert read[0] == Row("a", "l", "u1", {"column_1": "s"}, "b.csv line 1")
    with pytest.raises(ValueError, match=r"data.uid_column=4 must be from 0 to 3: .*b.csv has 4 columns and no header"):
        list(Csv(bare, image_column=0, caption_column=2, uid_column=4).rows())


def test_what_cannot_be_guessed_is_asked_for(tmp_path):
    with pytest.raises(
        ValueError, match=r"has 3 columns and no header: say which is the image, data\.image_column=0 to 2"
    ):
        found(write(tmp_path / "a.csv", [("a.jpg", "x", "y")]))
    with pytest.raises(ValueError, match=r"data\.image_column=0 to 1"):
        found(write(tmp_path / "b.csv", [("one", "two")]))
    with pytest.raises(ValueError, match=r"data\.image_column"):
        found(write(tmp_path / "c.csv", [("pic", "caption"), ("a", "b")]))
    with pytest.raises(ValueError, match=r"data\.caption_column=words: there is no such column among image, caption"):
        found(write(tmp_path / "d.csv", [("image", "caption"), ("a", "b")]), caption_column="words")
    with pytest.raises(ValueError, match=r"data\.delimiter='::'"):
        Csv(tmp_path / "d.csv", delimiter="::")
    with pytest.raises(ValueError, match=r"data\.annotations="):
        Csv(tmp_path / "none.csv")


def test_rows_of_another_width_are_bad(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"image,caption\na.jpg\n\nb.jpg,good\nc.jpg,one , two\n\xff\n")
    rows = list(Csv(tmp_path / "a.csv").rows())
    assert rows == [
        Bad("a.jpg", b"a.jpg", "read", "not 2 columns: 1 in a.csv line 2"),
        Row("b.jpg", "good", None, {}, "a.csv line 4"),
        Bad("c.jpg", b"c.jpg,one , two", "read", "not 2 columns: 3 in a.csv line 5"),
        Bad("\udcff", b"\xff", "read", "not 2 columns: 1 in a.csv line 6"),
    ]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_hostile_captions_survive(tmp_path, all_hostile, header, delimiter):
    pairs = [(f"{number}.jpg", caption) for number, caption in enumerate(all_hostile)]
    suffix = "csv" if delimiter == "," else "tsv"
    for end in ("\n", "\r\n"):
        rows = [("image", "caption"), *pairs] if header else pairs
        file = write(tmp_path / f"a.{suffix}", rows, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        assert found(file) == pairs


def test_bytes_that_are_no_utf8_cost_one_caption(tmp_path):
    lines = [b"image,caption", b"a.jpg,fine", b'b.jpg,caf\xe9 "au lait"', b'c.jpg,"na\xefve, yes"', b"d.jpg,\xc3\xa9"]
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(lines))
    pool = read_pool(Csv(tmp_path / "a.csv"), verify="none", max_bad_fraction=0.5, progress=False)
    assert sorted(pool.pairs.captions.to_pylist()) == ["fine", "é"]
    assert {row["caption"]: row["error"] for row in pool.quarantine.to_pylist()} == {
        b'caf\xe9 "au lait"': "caption is not UTF-8: byte 0xe9 after 3 characters, a.csv line 3",
        b"na\xefve, yes": "caption is not UTF-8: byte 0xef after 2 characters, a.csv line 4",
    }


def test_an_empty_file_has_no_pairs(tmp_path):
    (tmp_path / "a.csv").touch()
    assert found(tmp_path / "a.csv") == []


def test_the_pool_does_not_depend_on_the_order(tmp_path, all_hostile):
    pairs = [(f"{number % 4}.jpg", caption) for number, caption in enumerate(all_hostile * 2)]
    one = write(tmp_path / "a.csv", [("image", "caption"), *pairs])
    two = write(tmp_path / "b.tsv", [("caption", "image"), *((c, i) for i, c in pairs[::-1])], delimiter="\t")
    pools = [read_pool(Csv(file), verify="none", progress=False) for file in (one, two)]
    assert pools[0].pairs.hash == pools[1].pairs.hash
    assert len(pools[0].pairs) == len(pairs)
