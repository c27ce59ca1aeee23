import json
from collections import defaultdict

import pytest

from tldr.data.base import Bad, Row
from tldr.data.nlvr2 import Nlvr2
from tldr.data.pool import read_pool

LINES = [
    {"identifier": "dev-1-0-0", "sentence": "both dogs\n", "label": "True", "synset": "dog", "left_url": "x"},
    {"identifier": "dev-1-2-0", "sentence": "both dogs\n", "label": "False", "synset": "dog"},
    {"identifier": "dev-2-0-1", "sentence": "one cat", "label": "maybe"},
    {"identifier": "dev-3-0-0", "label": "True"},
    {"identifier": "dev-4", "sentence": "short"},
    {"identifier": "train-5-1-0", "sentence": "in a folder", "label": "True", "directory": 17},
    {"identifier": "test1-6-0-0", "sentence": "nobody knows"},
]


@pytest.fixture
def annotations(tmp_path):
    text = "\n".join(json.dumps(line) for line in LINES) + "\nno json\n\n"
    (tmp_path / "dev.json").write_text(text, encoding="utf-8")
    return tmp_path / "dev.json"


def extra(second, label, identifier, synset=None):
    return {"image_2": second, "label": label, "identifier": identifier, "synset": synset}


def test_the_official_lines(annotations):
    dogs = ("both dogs\n", extra("dev-1-0-img1.png", True, "dev-1-0", "dog"))
    assert list(Nlvr2(annotations).rows()) == [
        Row("dev-1-0-img0.png", dogs[0], "dev-1-0-0", dogs[1], "dev.json line 1"),
        Row(
            "dev-1-2-img0.png", dogs[0], "dev-1-2-0", extra("dev-1-2-img1.png", False, "dev-1-0", "dog"),
            "dev.json line 2",
        ),
        Bad("dev-2-0-img0.png", b"one cat", "read", "label is neither True nor False: dev.json line 3", "dev-2-0-1"),
        Bad("dev-3-0-img0.png", b"", "caption", "no caption: dev.json line 4", "dev-3-0-0"),
        Bad("", b"short", "read", "no identifier as dev-850-0-0: dev.json line 5"),
        Row(
            "17/train-5-1-img0.png", "in a folder", "train-5-1-0",
            extra("17/train-5-1-img1.png", True, "train-5-0"), "dev.json line 6",
        ),
        Row(
            "test1-6-0-img0.png", "nobody knows", "test1-6-0-0", extra("test1-6-0-img1.png", None, "test1-6-0"),
            "dev.json line 7",
        ),
        Bad("", b"", "read", "no identifier as dev-850-0-0: dev.json line 8"),
    ]  # fmt: skip
    flat = [row.image for row in Nlvr2(annotations, directories=False).rows()]
    assert flat[5] == "train-5-1-img0.png"


def test_both_pictures_are_verified(tmp_path, annotations, picture):
    for name in ("dev-1-0-img0.png", "dev-1-0-img1.png", "dev-1-2-img0.png", "17/train-5-1-img1.png"):
        picture(tmp_path / name)
    pool = read_pool(Nlvr2(annotations), max_bad_fraction=0.9, progress=False)
    assert (pool.read, len(pool.pairs), pool.quarantine.num_rows) == (8, 1, 7)
    errors = {row["uid"]: row["error"] for row in pool.quarantine.to_pylist() if row["stage"] == "image"}
    assert errors == {
        "dev-1-2-0": "missing file in image_2: dev-1-2-img1.png",
        "train-5-1-0": "missing file",
        "test1-6-0-0": "missing file",
    }


def test_the_real_file(test_data):
    file = test_data / "nlvr" / "nlvr2_dev.json"
    pool = read_pool(Nlvr2(file), verify="none", progress=False)
    assert (pool.read, len(pool.pairs)) == (6982, 6982)
    assert pool.pairs.column("label").sum() == 3551
    groups = defaultdict(set)
    for row in pool.pairs.table.to_pylist():
        groups[row["identifier"]].add(row["caption"])
    assert len(groups) == 2018  # as the corpus's own script counts; the words of 14 are those of another
    assert {len(said) for said in groups.values()} == {1}
