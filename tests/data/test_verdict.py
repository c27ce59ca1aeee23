"""Every picture is decoded once; what was decoded is remembered until its file changes."""

import os

import pyarrow as pa
import pytest

from tldr.data import verdict
from tldr.data.images import ImageStore
from tldr.data.verdict import verdicts


def look(root, names, **options):
    return verdicts(ImageStore(root), pa.array(names, pa.large_string()), progress=False, **options)


@pytest.fixture
def names(tmp_path, picture):
    return [picture(tmp_path / f"{number}.jpg", number).name for number in range(200)]


def test_a_second_run_decodes_only_what_changed(tmp_path, names, picture, monkeypatch):
    (tmp_path / names[3]).write_text("no picture")
    (tmp_path / names[4]).unlink()
    cache = tmp_path / "cache"
    first, decoded = look(tmp_path, names, cache=cache)
    assert decoded == 199
    assert first["locator"].to_pylist() == names
    errors = first["error"].to_pylist()
    assert [number for number, error in enumerate(errors) if error is not None] == [3, 4]

    def nobody(*_, **__):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(verdict, "decode", nobody)
        second, decoded = look(tmp_path, names[::-1], cache=cache)
        assert decoded == 0
        assert second.sort_by("locator").equals(first.sort_by("locator"))
        assert look(tmp_path, names[5:7], cache=cache)[1] == 0

    picture(tmp_path / names[3])
    picture(tmp_path / names[4])
    picture(tmp_path / names[5], 12345)
    os.utime(tmp_path / names[5], ns=(1, 1))
    third, decoded = look(tmp_path, [*names, "new.jpg"], cache=cache)
    assert decoded == 3
    assert third["error"].to_pylist() == [None] * 200 + ["missing file"]
    assert third["digest"][3] == third["digest"][4] == first["digest"][0]  # seed 0, all three
    assert third["digest"][5] != first["digest"][5]
    assert look(tmp_path, names, cache=cache)[1] == 0


def test_roots_do_not_share_verdicts(tmp_path, names, picture):
    other = tmp_path / "other"
    picture(other / names[0], 77)
    one, _ = look(tmp_path, names[:1], cache=tmp_path / "cache")
    two, decoded = look(other, names[:1], cache=tmp_path / "cache")
    assert decoded == 1
    assert one["digest"][0] != two["digest"][0]
    assert look(tmp_path, names[:1], cache=tmp_path / "cache")[1] == 0


def test_an_interrupted_run_keeps_what_it_has_seen(tmp_path, names, monkeypatch):
    cache = tmp_path / "cache"
    real = verdict.decode

    def tired(data, locator, **options):
        if locator == names[150]:
            raise KeyboardInterrupt
        return real(data, locator, **options)

    with monkeypatch.context() as patch:
        patch.setattr(verdict, "decode", tired)
        with pytest.raises(KeyboardInterrupt):
            look(tmp_path, names, cache=cache, workers=1)
    _, decoded = look(tmp_path, names, cache=cache)
    assert 0 < decoded <= 200 - 128  # the blocks of 64 before the one that was interrupted


def test_what_was_unreachable_is_tried_again(tmp_path, names):
    cache = tmp_path / "cache"
    assert look(tmp_path, ["later.jpg", names[0]], cache=cache)[0]["error"].to_pylist() == ["missing file", None]
    os.rename(tmp_path / names[1], tmp_path / "later.jpg")
    table, decoded = look(tmp_path, ["later.jpg", names[0]], cache=cache)
    assert (table["error"].to_pylist(), decoded) == ([None, None], 1)


def test_what_another_pillow_could_not_decode_is_tried_again(tmp_path, names, monkeypatch):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1)
        first, _ = look(tmp_path, names[:3], cache=cache)
        assert first["error"].null_count == 0
        assert look(tmp_path, names[:3], cache=cache)[1] == 0
    second, decoded = look(tmp_path, names[:3], cache=cache)
    assert (second["error"].null_count, decoded) == (3, 3)


def test_two_runs_at_once_keep_what_both_have_seen(tmp_path, names, monkeypatch):
    cache = tmp_path / "cache"
    decode, others = verdict.decode, names[3:6]

    def meanwhile(*given, **options):
        if others:
            more, others[:] = list(others), []
            assert look(tmp_path, more, cache=cache)[1] == 3
        return decode(*given, **options)

    monkeypatch.setattr(verdict, "decode", meanwhile)
    assert look(tmp_path, names[:3], cache=cache, workers=1)[1] == 3
    assert look(tmp_path, names[:6], cache=cache)[1] == 0


def test_the_number_of_threads_makes_no_difference(tmp_path, names):
    one, _ = look(tmp_path, names, workers=1)
    assert look(tmp_path, names, workers=7)[0].equals(one)


def test_nothing_to_look_at(tmp_path):
    table, decoded = look(tmp_path, [], cache=tmp_path)
    assert (table.num_rows, decoded) == (0, 0)
