import json

import pytest

from tldr.data.base import Bad, Row
from tldr.data.folder import Folder
from tldr.data.pool import read_pool


def test_pictures_and_texts_nested(tmp_path, picture):
    for name in ("b.jpg", "a/x.PNG", "a/deep/y.webp", ".hidden/z.jpg", "a/.trash.jpg"):
        picture(tmp_path / name)
    for name in ("b", "a/x", "a/deep/y", ".hidden/z"):
        (tmp_path / f"{name}.txt").write_text(f"of {name}")
    (tmp_path / "a" / "notes.md").write_text("no caption")
    assert list(Folder(tmp_path).rows()) == [
        Row("b.jpg", "of b", where="b.txt"),
        Row("a/x.PNG", "of a/x", where="a/x.txt"),
        Row("a/deep/y.webp", "of a/deep/y", where="a/deep/y.txt"),
    ]
    assert len(read_pool(Folder(tmp_path), progress=False).pairs) == 3


def test_a_picture_without_text_and_a_text_without_picture_are_bad(tmp_path, picture):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "sub" / "b.jpg")
    (tmp_path / "b.txt").write_text("elsewhere")
    (tmp_path / "a.jpg.txt").write_text("not of this name")
    assert list(Folder(tmp_path).rows()) == [
        Bad("a.jpg", b"", "caption", "no caption: there is no a.txt beside it"),
        Bad("", b"not of this name", "read", "no image: there is none of this name beside a.jpg.txt"),
        Bad("", b"elsewhere", "read", "no image: there is none of this name beside b.txt"),
        Bad("sub/b.jpg", b"", "caption", "no caption: there is no b.txt beside it"),
    ]


def test_letters_may_be_capitals(tmp_path, picture):
    picture(tmp_path / "A.JPG")
    (tmp_path / "A.TXT").write_text("loud")
    assert list(Folder(tmp_path).rows()) == [Row("A.JPG", "loud", where="A.TXT")]
    (tmp_path / "A.txt").write_text("quiet")  # which is another file, but for some systems
    if len(list(tmp_path.iterdir())) == 3:
        said = "A.TXT has the caption that A.txt might have"
        assert Bad("", b"quiet", "read", said) in list(Folder(tmp_path).rows())


def test_the_whole_text_is_the_caption_or_every_line(tmp_path, picture):
    picture(tmp_path / "a.jpg")
    text = b"\xef\xbb\xbfone\r\n\r\ntwo\n \nthree\n"
    (tmp_path / "a.txt").write_bytes(text)
    assert [row.caption for row in Folder(tmp_path).rows()] == ["one\r\n\r\ntwo\n \nthree"]
    assert list(Folder(tmp_path, lines=True).rows()) == [
        Row("a.jpg", "one", where="a.txt line 1"),
        Row("a.jpg", "two", where="a.txt line 3"),
        Row("a.jpg", "three", where="a.txt line 5"),
    ]
    (tmp_path / "a.txt").write_text("\n")
    for lines in (False, True):
        with pytest.raises(ValueError, match="empty caption"):
            read_pool(Folder(tmp_path, lines=lines), progress=False)


def test_hostile_captions_survive(tmp_path, picture, all_hostile):
    for number, caption in enumerate(all_hostile):
        picture(tmp_path / f"{number}.png", size=4)
        (tmp_path / f"{number}.txt").write_bytes(caption.encode())
    pool = read_pool(Folder(tmp_path), progress=False)
    images = [int(image.removesuffix(".png")) for image in pool.pairs.images.to_pylist()]
    assert dict(zip(images, pool.pairs.captions.to_pylist(), strict=True)) == dict(enumerate(all_hostile))


def test_img2datasets_records_name_the_pairs(tmp_path, picture):
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text("one\ntwo")
    (tmp_path / "a.json").write_text(json.dumps({"key": "000000001", "uid": "f00"}))
    (tmp_path / "b.json").write_text(json.dumps({"key": "000000002", "caption": "one"}))
    (tmp_path / "c.json").write_text("[1, 2]")
    (tmp_path / "d.json").write_bytes(b"\xff{")
    assert [row.uid for row in Folder(tmp_path).rows()] == ["f00", None, None, None]
    assert [row.uid for row in Folder(tmp_path, lines=True).rows()][:4] == ["f00#1", "f00#2", None, None]


def test_a_caption_that_cannot_be_read_costs_one_pair(tmp_path, picture):
    for name in "ab":
        picture(tmp_path / f"{name}.jpg")
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "b.txt").write_text("fine")
    bad, row = Folder(tmp_path).rows()
    assert isinstance(bad, Bad)
    assert bad.error == "caption cannot be read: No such file or directory, a.txt"
    assert (row.image, row.caption) == ("b.jpg", "fine")


def test_links_to_folders_are_followed_once(tmp_path, picture):
    for folder in ("root", "elsewhere"):
        (tmp_path / folder).mkdir()
        picture(tmp_path / folder / f"{folder}.jpg")
        (tmp_path / folder / f"{folder}.txt").write_text(folder)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    assert [row.image for row in Folder(tmp_path / "root").rows()] == ["root.jpg", "link/elsewhere.jpg"]


def test_names_and_texts_that_are_no_utf8_cost_one_pair(tmp_path, picture):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"fine")
    picture(tmp_path / "b.jpg")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    bad = tmp_path / b"\xff.jpg".decode("utf-8", "surrogateescape")
    try:
        bad.write_bytes((tmp_path / "a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system has no names outside UTF-8")
    bad.with_suffix(".txt").write_text("unnameable")
    pool = read_pool(Folder(tmp_path), max_bad_fraction=0.7, progress=False)
    assert pool.pairs.captions.to_pylist() == ["fine"]
    assert {row["caption"]: row["error"] for row in pool.quarantine.to_pylist()} == {
        b"caf\xe9": "caption is not UTF-8: byte 0xe9 after 3 characters, b.txt",
        b"unnameable": "image name is not UTF-8: byte 0xff after 0 characters, \\udcff.txt",
    }


def test_a_wrong_root_names_the_override(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none; give the right one as data\.root="):
        Folder(tmp_path / "none")
