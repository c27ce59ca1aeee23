"""The middle frame of a part of a clip."""

import importlib.util
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from tldr.data.frames import frame_of_folder, frame_of_video
from tldr.data.images import ImageError, ImageStore


@pytest.fixture
def clip(tmp_path):
    """A folder of 16 frames, as grey as their number, and what else lies in folders."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (4, 4), (number,) * 3).save(folder / f"{number:02d}.png")
    (folder / "notes.txt").write_text("no frame")
    (folder / ".hidden.png").write_bytes(b"no frame")
    return folder


def test_each_part_shows_its_middle(clip):
    names = [frame_of_folder(str(clip), part, 8) for part in range(8)]
    assert [int(name[-6:-4]) for name in names] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert [int(frame_of_folder(str(clip), part, 3)[-6:-4]) for part in range(3)] == [2, 8, 13]
    assert frame_of_folder(str(clip), 0, 1).endswith("08.png")
    few = [int(frame_of_folder(str(clip), part, 64)[-6:-4]) for part in range(64)]  # more parts than frames
    assert few == sorted(few)
    assert set(few) == set(range(16))


def test_a_store_opens_them(clip, tmp_path):
    store = pickle.loads(pickle.dumps(ImageStore(tmp_path)))
    assert store.load("clip#frame=2/8").getpixel((0, 0)) == (5, 5, 5)
    frame = clip / "05.png"
    assert store.stamp("clip#frame=2/8") == (frame.stat().st_size, frame.stat().st_mtime_ns)  # the frame's own
    assert store.place("clip#frame=2/8").path == str(frame)


def test_what_is_no_frame_says_so(clip, tmp_path):
    store = ImageStore(tmp_path)
    (tmp_path / "empty").mkdir()
    for locator, reason in [
        ("clip#frame=8/8", "no such frame: of 8 parts the last is 7"),
        ("clip#frame=0/0", "no such frame"),
        ("empty#frame=0/8", "cannot be read: a folder without pictures"),
        ("none.mp4#frame=0/8", "missing file"),
    ]:
        with pytest.raises(ImageError, match=reason):
            store.read(locator)


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="PyAV is installed")
def test_a_video_without_pyav_names_the_extra(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"video")
    with pytest.raises(
        ImageError, match=r"cannot be read: frames of a video need PyAV: pip install 'tldr-vlp\[video\]'"
    ):
        ImageStore(tmp_path).read("a.mp4#frame=0/8")


def test_frames_of_a_video(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 6 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for part in range(8):  # five frames each
        shown = Image.open(io.BytesIO(frame_of_video(str(tmp_path / "a.mp4"), part, 8)))
        assert np.asarray(shown, float).mean() == pytest.approx(6 * (5 * part + 2), abs=7)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(ImageError, match="cannot be read"):
        ImageStore(tmp_path).read("b.mp4#frame=0/8")
