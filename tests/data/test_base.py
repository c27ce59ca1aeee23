"""Records of delimited files: what a CSV writer wrote is read back, and a stray quote costs nobody else anything."""

import csv
import random

import pytest

from tldr.data.base import absolute, column, existing_file, existing_folder, json_lines, pairs, records


def read(path, delimiter=",", **options):
    return list(records(path, delimiter, **options))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_what_a_csv_writer_wrote_is_read_back(tmp_path, delimiter, end):
    rng = random.Random(0)
    alphabet = ['"', '""', ",", "\t", ";", "|", "\n", "\r\n", "\r", "a", "b ", "\0", "\u2028", "\U0001f600", "'", "\\"]
    rows = [["".join(rng.choices(alphabet, k=rng.randrange(8))) + "." for _ in range(3)] for _ in range(2000)]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    found = read(tmp_path / "a.csv", delimiter)
    assert [cells for _, cells in found] == rows
    text = (tmp_path / "a.csv").read_bytes()
    starts = [1]
    for row in rows:
        starts.append(starts[-1] + sum(cell.count("\n") for cell in row) + 1)
    assert [line for line, _ in found] == starts[:-1]
    assert text.count(b"\n") == starts[-1] - 1


def test_a_quote_that_opens_nothing_is_a_character(tmp_path):
    lines = [
        b'a.jpg,"hello" she said',
        b'b.jpg,17" screen',
        b'c.jpg,"unclosed',
        b'd.jpg,"closed, with ""quotes""',
        b'of two lines"',
        b'e.jpg,"',
        b"f.jpg,a\rb",
        b'g.jpg,\xff"\xfe',
        b"",
        b"h.jpg,last",
    ]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    assert read(tmp_path / "a.csv") == [
        (1, ["a.jpg", '"hello" she said']),
        (2, ["b.jpg", '17" screen']),
        (3, ["c.jpg", '"unclosed']),
        (4, ["d.jpg", 'closed, with "quotes"\nof two lines']),
        (6, ["e.jpg", '"']),
        (7, ["f.jpg", "a\rb"]),
        (8, ["g.jpg", '\udcff"\udcfe']),
        (10, ["h.jpg", "last"]),
    ]


def test_without_quotes_all_of_them_are_characters(tmp_path):
    (tmp_path / "a.tsv").write_text('"a"\t"b\n""\tc"\n', newline="")
    assert read(tmp_path / "a.tsv", "\t", quotes=False) == [(1, ['"a"', '"b']), (2, ['""', 'c"'])]
    assert read(tmp_path / "a.tsv", "\t") == [(1, ["a", 'b\n"\tc'])]


def test_an_unclosed_quote_is_not_sought_through_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tldr.data.base._LONGEST_CELL", 1000)
    lines = ['0.jpg,"never closed', *(f"{number}.jpg,word" for number in range(1, 500)), '500.jpg,"quoted"']
    (tmp_path / "a.csv").write_text("\n".join(lines))
    found = read(tmp_path / "a.csv")
    assert [line for line, _ in found] == list(range(1, 502))
    assert found[0][1] == ["0.jpg", '"never closed']
    assert found[-1][1] == ["500.jpg", "quoted"]


def test_columns_are_found_by_their_usual_names_or_named():
    names = ["ID", " Caption", "File_Name", "url"]
    assert column(names, None, ("image", "file_name", "url"), "data.image_column") == "File_Name"
    assert column(names, "url", ("image", "file_name"), "data.image_column") == "url"
    with pytest.raises(ValueError, match=r"data\.caption_column=text: there is no such column among ID,  Caption"):
        column(names, "text", ("caption",), "data.caption_column")
    with pytest.raises(ValueError, match=r"Say so with data\.image_column="):
        column(["a", "b"], None, ("image",), "data.image_column")


def test_what_is_not_there_names_the_override(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"none\.json: there is no such file; give the right one as data\.annotations="
    ):
        existing_file(tmp_path / "none.json", "data.annotations")
    with pytest.raises(ValueError, match="it is a folder"):
        existing_file(tmp_path, "data.annotations")
    with pytest.raises(ValueError, match=r"no folder .*none; give the right one as data\.root="):
        existing_folder(tmp_path / "none", "data.root")
    assert existing_folder("s3://bucket/img", "data.images") == "s3://bucket/img"
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == str(tmp_path / "b")


def test_a_record_of_several_captions_is_several_pairs():
    rows = list(pairs("a.jpg", ["x", None, 3], 7, {}, "here"))
    assert [row.uid for row in rows] == ["7#0", "7#1", "7#2"]
    assert [getattr(row, "error", None) for row in rows] == [None, "no caption: here", "caption is no text: here"]
    assert [row.uid for row in pairs("a.jpg", ["x"], "u", {}, "")] == ["u"]
    assert [row.uid for row in pairs("a.jpg", [], "u", {}, "")] == ["u"]


def test_json_lines_cost_one_value_where_they_are_broken(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n[2]\r\n"caf\xe9"\n"a\xe2\x80\xa8b"')
    assert list(json_lines(tmp_path / "a.jsonl")) == [
        (1, {"a": 1}),
        (3, None),
        (4, [2]),
        (5, "caf\udce9"),
        (6, "a\u2028b"),
    ]


def test_a_reader_is_its_own_evaluation_set_unless_it_knows_better(listed):
    reader = listed([])
    assert all(reader.for_task(task) is reader for task in ("pairs", "nlvr2", "vqa", "classes", "video"))
