import json
import random

import pytest

from tldr.data import json as module
from tldr.data.base import Bad, Row
from tldr.data.json import Json
from tldr.data.pool import read_pool


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def rows(path, **options):
    return list(Json(path, **options).rows())


def test_blip_annotations(tmp_path):
    records = [
        {"image": "a.jpg", "caption": "one", "image_id": "a", "score": 0.5},
        {"image": "b.jpg", "caption": ["two", "three"], "image_id": "b"},
        {"image": "c.jpg", "caption": ["four", "five"], "uid": "c"},
        {"image": "d.jpg", "caption": "six", "uid": 7, "truth_mismatched": True},
    ]
    found = rows(write(tmp_path / "a.json", records))
    assert [(row.image, row.caption, row.uid, row.extra) for row in found if isinstance(row, Row)] == [
        ("a.jpg", "one", None, {"image_id": "a", "score": 0.5}),
        ("b.jpg", "two", None, {"image_id": "b"}),
        ("b.jpg", "three", None, {"image_id": "b"}),
        ("c.jpg", "four", "c#0", {}),
        ("c.jpg", "five", "c#1", {}),
        ("d.jpg", "six", "7", {"truth_mismatched": True}),
    ]


def test_what_is_no_pair_is_bad_with_its_record(tmp_path):
    records = [{"caption": "x"}, {"image": "a.jpg"}, {"image": "a.jpg", "caption": []}, {"image": 3, "caption": "x"}]
    records += [{"image": "a.jpg", "caption": 0.5}, "text", 12, {"image": "a.jpg", "caption": "good", "uid": "u"}]
    found = rows(write(tmp_path / "a.json", records))
    assert [(row.image, row.caption, row.stage, row.error) for row in found if isinstance(row, Bad)] == [
        ("", b"x", "read", "no image: a.json record 0"),
        ("a.jpg", b"", "caption", "no caption: a.json record 1"),
        ("a.jpg", b"", "caption", "no caption: a.json record 2"),
        ("", b"x", "read", "no image: a.json record 3"),
        ("a.jpg", b"0.5", "caption", "caption is no text: a.json record 4"),
        ("", b"text", "read", "no object: a.json record 5"),
        ("", b"12", "read", "no object: a.json record 6"),
    ]
    assert found[-1] == Row("a.jpg", "good", "u", {}, "a.json record 7")


def test_hostile_captions_survive(tmp_path, hostile):
    for text in (
        json.dumps([{"image": "a", "caption": hostile}]),
        json.dumps([{"image": "a", "caption": [hostile]}], ensure_ascii=False, indent=1),
    ):
        (tmp_path / "a.json").write_text(text, encoding="utf-8", newline="")
        assert [row.caption for row in rows(tmp_path / "a.json")] == [hostile]


def test_a_list_is_read_in_steps_of_any_size(tmp_path, monkeypatch, all_hostile):
    records = [
        {"image": f"{i}.jpg", "caption": text, "n": i, "deep": {"a": [1, {}]}} for i, text in enumerate(all_hostile)
    ]
    file = write(tmp_path / "a.json", [*records, 123456, "a string", None])
    (tmp_path / "b.json").write_text("\ufeff \n" + json.dumps(records, indent=3) + "\n")
    whole, indented = rows(file), rows(tmp_path / "b.json")
    assert len(whole) == len(records) + 3
    for step in (1, 7, 1000):
        monkeypatch.setattr(module, "_STEP", step)
        assert rows(file) == whole
        assert rows(tmp_path / "b.json") == indented


def test_a_file_that_is_broken_stops_with_its_place(tmp_path):
    text = json.dumps([{"image": f"{i}.jpg", "caption": "x"} for i in range(10)])
    (tmp_path / "cut.json").write_text(text[:-20])
    with pytest.raises(ValueError, match=r"cut\.json is not a complete JSON list: .*, record 9, character"):
        rows(tmp_path / "cut.json")
    (tmp_path / "open.json").write_text(text[:-1])
    with pytest.raises(ValueError, match=r"it breaks off|Expecting value"):
        rows(tmp_path / "open.json")
    (tmp_path / "typo.json").write_text(text.replace('"5.jpg",', '"5.jpg"'))
    with pytest.raises(ValueError, match=r"Expecting ',' delimiter, record 5"):
        rows(tmp_path / "typo.json")


@pytest.mark.parametrize("more", ['[{"image": "b.png", "caption": "b"}]', "rest", "\n\n {}"])
def test_what_follows_a_list_is_not_passed_over(tmp_path, monkeypatch, more):
    """As where the lists of several processes were put one behind the other."""
    (tmp_path / "a.json").write_text('[{"image": "a.png", "caption": "a"}]\n' + more)
    for step in (1, 1 << 20):
        monkeypatch.setattr(module, "_STEP", step)
        with pytest.raises(ValueError, match=r"a\.json: its list ends at character 35, and more follows"):
            rows(tmp_path / "a.json")


def test_other_files_say_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="data=coco"):
        rows(write(tmp_path / "coco.json", {"images": [], "annotations": []}))
    (tmp_path / "long.json").write_text(json.dumps({"images": [], "annotations": []}, indent=1))
    with pytest.raises(ValueError, match="data=coco"):
        rows(tmp_path / "long.json")
    (tmp_path / "a.csv").write_text("image,caption")
    with pytest.raises(ValueError, match=r"a\.csv is no JSON list of pairs"):
        rows(tmp_path / "a.csv")
    (tmp_path / "empty.json").touch()
    with pytest.raises(ValueError, match="is no JSON list of pairs"):
        rows(tmp_path / "empty.json")


def test_several_files_are_one_source(tmp_path, picture):
    """Each by its own keys, told by its place; a pair's uid is what it would be of one file."""
    for name in ("coco/1.jpg", "vg/2.jpg"):
        picture(tmp_path / name)
    (tmp_path / "lists").mkdir()
    (tmp_path / "more").mkdir()
    one = write(tmp_path / "lists" / "a.json", [{"image": "coco/1.jpg", "caption": "x"}, {"image": "coco/1.jpg"}])
    two = write(tmp_path / "more" / "a.json", [{"url": "vg/2.jpg", "text": ["y", "z"], "uid": 7}, "no object"])
    reader = Json([one, two], images=tmp_path)
    found = list(reader.rows())
    assert [(row.image, row.caption, row.uid, row.where) for row in found if isinstance(row, Row)] == [
        ("coco/1.jpg", "x", None, "lists/a.json record 0"),
        ("vg/2.jpg", "y", "7#0", "more/a.json record 0"),
        ("vg/2.jpg", "z", "7#1", "more/a.json record 0"),
    ]
    assert [row.error for row in found if isinstance(row, Bad)] == [
        "no caption: lists/a.json record 1",
        "no object: more/a.json record 1",
    ]
    assert Json([one, two]).root == str(tmp_path)

    def uids(annotations):
        pool = read_pool(Json(annotations, images=tmp_path), max_bad_fraction=0.6, progress=False)
        return set(pool.pairs.uids.to_pylist())

    assert uids([one, two]) == uids(one) | uids(two) == uids([two, one])


def test_several_files_name_the_one_that_is_wrong(tmp_path):
    good = write(tmp_path / "good.json", [{"image": "a.jpg", "caption": "x"}])
    odd = write(tmp_path / "odd.json", [{"pic": "a.jpg", "words": "x"}])
    with pytest.raises(ValueError, match=r"odd\.json: which of the columns pic, words is it\? .* data\.image_column="):
        rows([good, odd])
    with pytest.raises(
        ValueError, match=r"none\.json: there is no such file; give the right one as data\.annotations="
    ):
        Json([good, tmp_path / "none.json"])
    (tmp_path / "cut.json").write_text('[{"image": "a.jpg", "caption": "x"}, {"im')
    with pytest.raises(ValueError, match=r"cut\.json is not a complete JSON list"):
        rows([good, tmp_path / "cut.json"])
    with pytest.raises(ValueError, match=r"data\.annotations=\[\] names no file"):
        Json([])


def test_json_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"image": "a.jpg", "caption": "x\xe2\x80\xa8y"}\n\n{"image": \n{"image": "b.jpg", "caption": "z"}\n'
    )
    first, broken, last = rows(tmp_path / "a.jsonl")
    (tmp_path / "b.json").write_text('\n{"image": "a.jpg", "caption": "x"}\n{"image": "b.jpg", "caption": "y"}\n')
    assert [row.image for row in rows(tmp_path / "b.json")] == ["a.jpg", "b.jpg"]
    assert (first.caption, last.caption) == ("x\u2028y", "z")
    assert isinstance(broken, Bad)
    assert broken.error == "no object: a.jsonl record 1"


def test_bytes_that_are_no_utf8_cost_one_caption(tmp_path, picture):
    picture(tmp_path / "a.jpg")
    records = [b'{"image": "a.jpg", "caption": "%s"}' % text for text in (b"caf\xe9", b"caf\xc3\xa9", b"\\ud83d")]
    (tmp_path / "a.json").write_bytes(b"[" + b",".join(records) + b"]")
    pool = read_pool(Json(tmp_path / "a.json"), max_bad_fraction=0.7, progress=False)
    assert pool.pairs.captions.to_pylist() == ["caf\u00e9"]
    assert {row["caption"]: row["error"] for row in pool.quarantine.to_pylist()} == {
        b"caf\xe9": "caption is not UTF-8: byte 0xe9 after 3 characters, a.json record 0",
        b"\xed\xa0\xbd": "caption is not UTF-8: lone surrogate U+D83D after 0 characters, a.json record 2",
    }


def test_pictures_beside_a_link_are_found(tmp_path, picture):
    """Hugging Face's cache: every file of a snapshot is a link to a blob of another name."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    picture(tmp_path / "snapshot" / "a.jpg")
    write(tmp_path / "blobs" / "f00", [{"image": "a.jpg", "caption": "a"}])
    (tmp_path / "snapshot" / "a.json").symlink_to("../blobs/f00")
    pool = read_pool(Json(tmp_path / "snapshot" / "a.json"), progress=False)
    assert (len(pool.pairs), pool.pairs.root) == (1, str(tmp_path / "snapshot"))


def test_pictures_are_found_from_anywhere(tmp_path, picture, monkeypatch):
    picture(tmp_path / "img" / "a.jpg")
    write(tmp_path / "a.json", [{"image": "a.jpg", "caption": "x"}, {"image": "a.jpg", "caption": "y"}])
    monkeypatch.chdir(tmp_path)
    reader = Json("a.json", images="img")
    monkeypatch.chdir("/")
    pool = read_pool(reader, progress=False)
    assert pool.pairs.root == str(tmp_path / "img")
    assert len(pool.pairs) == 2
    assert Json(tmp_path / "a.json").root == str(tmp_path)


def test_the_pool_does_not_depend_on_the_order(tmp_path, all_hostile):
    records = [{"image": f"{i % 3}.jpg", "caption": text} for i, text in enumerate(all_hostile * 2)]
    hashes = set()
    for seed in range(3):
        random.Random(seed).shuffle(records)
        hashes.add(read_pool(Json(write(tmp_path / "a.json", records)), verify="none", progress=False).pairs.hash)
    assert len(hashes) == 1


def test_keys_are_found_by_their_usual_names(tmp_path):
    url = "https://host/1.jpg"
    file = write(
        tmp_path / "ccs_filtered.json", [{"caption": "x", "url": url}, {"url": url}, {"caption": "y", "url": url}]
    )
    first, bad, last = rows(file)
    assert first == Row(url, "x", None, {}, "ccs_filtered.json record 0")
    assert isinstance(bad, Bad)
    assert (last.image, last.caption) == (url, "y")
    both = {"Text": "x", "url": url, "image": "a.jpg"}
    assert rows(write(tmp_path / "a.json", [both]))[0] == Row("a.jpg", "x", None, {"url": url}, "a.json record 0")
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": ["x", "y"], "path": "a.jpg", "uid": 1}) + "\nno json\n")
    assert [(one.image, one.caption, one.uid) for one in rows(tmp_path / "a.jsonl") if isinstance(one, Row)] == [
        ("a.jpg", "x", "1#0"),
        ("a.jpg", "y", "1#1"),
    ]


def test_keys_that_cannot_be_guessed_are_asked_for(tmp_path):
    file = write(tmp_path / "a.json", [{"pic": "a.jpg", "words": "x"}])
    with pytest.raises(ValueError, match=r"columns pic, words is it\? Say so with data\.image_column="):
        rows(file)
    with pytest.raises(ValueError, match=r"columns pic, words is it\? Say so with data\.caption_column="):
        rows(file, image_column="pic")
    with pytest.raises(ValueError, match=r"data\.image_column=image: there is no such column among pic, words"):
        rows(file, image_column="image", caption_column="words")
    assert rows(file, image_column="pic", caption_column="words")[0] == Row("a.jpg", "x", None, {}, "a.json record 0")


def test_other_keys_and_missing_files(tmp_path):
    file = write(tmp_path / "a.json", [{"file": "a.jpg", "text": "x"}])
    assert rows(file, image_column="file", caption_column="text")[0] == Row("a.jpg", "x", None, {}, "a.json record 0")
    with pytest.raises(ValueError, match=r"data\.annotations="):
        Json(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"data\.images="):
        Json(file, images=tmp_path / "none")
