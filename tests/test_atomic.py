"""A file is whole or not there, whoever writes it and however that ends."""

import json
import os

import pytest

from tldr.atomic import atomic_path, make_folder, write_json


def test_the_target_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "folder" / "part.bin"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == target.parent  # a rename across file systems would be a copy
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert os.listdir(target.parent) == ["part.bin"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, failure):
    target = tmp_path / "part.bin"
    target.write_bytes(b"old")

    def write():
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"new")
            raise failure

    with pytest.raises(failure):
        write()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["part.bin"]


def test_two_processes_writing_one_file_do_not_meet(tmp_path, monkeypatch):
    target = tmp_path / "part.bin"
    with atomic_path(target) as ours:
        ours.write_bytes(b"ours")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with atomic_path(target) as theirs:
            theirs.write_bytes(b"theirs")
        assert ours.read_bytes() == b"ours"
    assert target.read_bytes() == b"ours"


def test_json_is_readable_and_all_or_nothing(tmp_path):
    file = write_json(tmp_path / "a.json", {"name": "Zoë 🦊", "root": tmp_path})
    assert "Zoë 🦊" in file.read_text(encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8")) == {"name": "Zoë 🦊", "root": str(tmp_path)}

    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="Circular"):
        write_json(file, loop)
    assert json.loads(file.read_text(encoding="utf-8"))["name"] == "Zoë 🦊"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_made_unless_a_file_is_there(tmp_path):
    make_folder(tmp_path / "a" / "b", "out")
    make_folder(tmp_path / "a" / "b", "out")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(ValueError, match=rf"out={place} is no folder, or lies in a file"):
            make_folder(place, "out")
