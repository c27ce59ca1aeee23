import json

import pytest

from tldr.data.base import Bad, Row
from tldr.data.images import ImageStore
from tldr.data.msrvtt import Msrvtt
from tldr.data.pool import read_pool

CONTENT = {
    "info": {},
    "videos": [
        {"video_id": "video0", "split": "train", "url": "x"},
        {"video_id": "video1", "split": "test"},
        {"video_id": "video2", "split": "test"},
    ],
    "sentences": [
        {"caption": "a man talks", "video_id": "video0", "sen_id": 0},
        {"caption": "a dog runs", "video_id": "video1", "sen_id": 1},
        {"caption": "a brown dog", "video_id": "video1", "sen_id": 2},
        {"caption": "lost", "video_id": "video9", "sen_id": 3},
    ],
}


@pytest.fixture
def annotations(tmp_path):
    (tmp_path / "videodatainfo.json").write_text(json.dumps(CONTENT), encoding="utf-8")
    return tmp_path / "videodatainfo.json"


def test_clips_and_their_sentences(annotations):
    dog = ("video1.mp4#frame=0/8", {"video": "video1"})
    lost = Bad("", b"lost", "read", "no image: videodatainfo.json sentence 3", "3")
    silent = "no caption: videodatainfo.json has none for this clip"
    assert list(Msrvtt(annotations, split="test").rows()) == [
        Row(dog[0], "a dog runs", "1", dog[1], "videodatainfo.json sentence 1"),
        Row(dog[0], "a brown dog", "2", dog[1], "videodatainfo.json sentence 2"),
        lost,
        Bad("video2.mp4#frame=0/8", b"", "caption", silent),
    ]
    assert len(list(Msrvtt(annotations).rows())) == 5
    with pytest.raises(ValueError, match=r"data\.split=val is not in .*; choose from all, test, train"):
        list(Msrvtt(annotations, split="val").rows())


def test_the_csv_of_the_usual_test_set(tmp_path):
    file = tmp_path / "MSRVTT_JSFUSION_test.csv"
    file.write_text('key,vid_key,video_id,sentence\nret0,msr7020,video7020,"a woman, cooking"\nret1,x\n')
    rows = list(Msrvtt(file, frames=4, suffix=".avi").rows())
    where = "MSRVTT_JSFUSION_test.csv line"
    assert rows == [
        Row("video7020.avi#frame=0/4", "a woman, cooking", "ret0", {"video": "video7020"}, f"{where} 2"),
        Bad("", b"", "read", f"not 4 columns: 2 in {where} 3"),
    ]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns video_id and sentence; it has a, b"):
        list(Msrvtt(tmp_path / "other.csv").rows())


def test_folders_of_frames_are_a_pool(tmp_path, annotations, picture):
    for clip, count in (("video0", 3), ("video1", 20)):
        for number in range(count):
            picture(tmp_path / "frames" / clip / f"{number:03d}.png", number)
    reader = Msrvtt(annotations, videos=tmp_path / "frames", suffix="")
    pool = read_pool(reader, max_bad_fraction=0.9, progress=False)
    assert (pool.read, len(pool.pairs), pool.quarantine.num_rows) == (5, 3, 2)
    store = ImageStore(pool.pairs.root)
    shown = store.read("video1#frame=0/8")
    assert shown == (tmp_path / "frames" / "video1" / "001.png").read_bytes()


def test_errors_name_the_argument(tmp_path, annotations):
    with pytest.raises(ValueError, match=r"data\.frames=0"):
        Msrvtt(annotations, frames=0)
    with pytest.raises(ValueError, match=r"data\.videos="):
        Msrvtt(annotations, videos=tmp_path / "none")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="is not MSR-VTT's"):
        list(Msrvtt(tmp_path / "x.json").rows())
