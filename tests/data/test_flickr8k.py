import random
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest

from tldr.data.base import Bad, Row
from tldr.data.flickr8k import Flickr8k
from tldr.data.pool import read_pool
from tldr.pairs import Pairs


@pytest.mark.parametrize("folder", ["images", "Images"])
def test_kaggles_folder(tmp_path, picture, folder):
    picture(tmp_path / folder / "a.jpg")
    (tmp_path / "captions.txt").write_text('image,caption\na.jpg,one .\na.jpg,"two , three"\na.jpg\n,nobody\n')
    assert list(Flickr8k(tmp_path).rows()) == [
        Row(f"{folder}/a.jpg", "one .", where="captions.txt line 2"),
        Row(f"{folder}/a.jpg", "two , three", where="captions.txt line 3"),
        Bad(f"{folder}/a.jpg", b"", "read", "not 2 columns: 1 in captions.txt line 4"),
        Row("", "nobody", where="captions.txt line 5"),
    ]


def test_a_wrong_root_or_split_names_the_override(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*none; give the right one as data\.root="):
        Flickr8k(tmp_path / "none")
    with pytest.raises(ValueError, match=r"captions\.txt: there is no such file; give the right one as data\.root="):
        Flickr8k(tmp_path)
    (tmp_path / "captions.txt").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"no folder images or Images in .*data\.root="):
        list(Flickr8k(tmp_path).rows())
    with pytest.raises(ValueError, match=r"data\.split='val'; flickr8k has all, train, dev, test"):
        Flickr8k(tmp_path, split="val")


def test_hostile_captions_survive(tmp_path, all_hostile):
    (tmp_path / "images").mkdir()
    quoted = [caption.replace('"', '""') for caption in all_hostile]
    text = "image,caption\n" + "".join(f'{number}.jpg,"{caption}"\n' for number, caption in enumerate(quoted))
    (tmp_path / "captions.txt").write_text(text, encoding="utf-8", newline="")
    assert [row.caption for row in Flickr8k(tmp_path).rows()] == all_hostile


def test_the_splits_part_the_images_by_name(test_data):
    root = test_data / "flickr8k"
    sides = {
        split: Counter(row.image for row in Flickr8k(root, split=split).rows())
        for split in ("all", "train", "dev", "test")
    }
    assert len(sides["all"]) == 705
    assert sides["train"] + sides["dev"] + sides["test"] == sides["all"]
    assert sum(len(sides[split]) for split in ("train", "dev", "test")) == 705  # an image is in one
    assert all(0.06 < len(sides[split]) / 705 < 0.14 for split in ("dev", "test"))
    assert set(sides["all"].values()) == {5}


@pytest.fixture
def damaged(tmp_path, test_data):
    """60 real photographs: 6 truncated, 2 missing, 2 no images, and 3 captions of others in no UTF-8."""
    source, root = test_data / "flickr8k", tmp_path / "flickr8k"
    (root / "images").mkdir(parents=True)
    lines = (source / "captions.txt").read_bytes().splitlines(keepends=True)[: 1 + 5 * 60]
    names = sorted({line.partition(b",")[0].decode() for line in lines[1:]})
    assert len(names) == 60
    for name in names:
        shutil.copy(source / "images" / name, root / "images" / name)
    rng = random.Random(0)
    rng.shuffle(names)
    for name in names[:6]:
        file = root / "images" / name
        data = file.read_bytes()
        file.write_bytes(data[: rng.randrange(1000, len(data) - 100)])
    for name in names[6:8]:
        (root / "images" / name).unlink()
    (root / "images" / names[8]).write_text("<html>404</html>")
    (root / "images" / names[9]).write_bytes(rng.randbytes(5000))
    chosen = rng.sample(
        [number for number in range(1, len(lines)) if lines[number].split(b",")[0].decode() in names[10:]], 3
    )
    for number in chosen:
        lines[number] = lines[number].replace(b" ", b" \xff\xfe", 1)
    (root / "captions.txt").write_bytes(b"".join(lines))
    return root, names, [number + 1 for number in sorted(chosen)]


def test_damage_is_quarantined_exactly(tmp_path, damaged, capsys):
    root, names, lines = damaged
    pool = read_pool(Flickr8k(root), max_bad_fraction=0.2, cache=tmp_path, quarantine_to=tmp_path / "out")
    assert (pool.read, len(pool.pairs), pool.quarantine.num_rows) == (300, 247, 53)
    found = Counter((row["stage"], row["image"], row["error"].partition(":")[0]) for row in pool.quarantine.to_pylist())
    captions = {key: number for key, number in found.items() if key[0] == "caption"}
    assert {error for _, _, error in captions} == {"caption is not UTF-8"}
    assert sum(captions.values()) == 3
    kinds = ["truncated or corrupt"] * 6 + ["missing file"] * 2 + ["not an image"] * 2
    assert {key: number for key, number in found.items() if key[0] == "image"} == {
        ("image", f"images/{name}", kind): 5 for name, kind in zip(names, kinds, strict=False)
    }
    errors = [row["error"] for row in pool.quarantine.to_pylist() if row["stage"] == "caption"]
    assert sorted(int(error.rpartition(" line ")[2]) for error in errors) == lines
    assert not {f"images/{name}" for name in names[:10]} & set(pool.pairs.images.to_pylist())
    assert pq.read_table(tmp_path / "out" / "quarantine.parquet").num_rows == 53
    assert "images/s" in capsys.readouterr().err  # the rate of the progress bar

    again = read_pool(Flickr8k(root), max_bad_fraction=0.2, cache=tmp_path, progress=False)
    assert again.decoded == 0
    assert again.pairs.hash == pool.pairs.hash
    assert again.quarantine.equals(pool.quarantine)
    assert len(Pairs.open(again.pairs.write(tmp_path / "pool"))) == 247


def test_damage_above_what_is_allowed_stops(tmp_path, damaged):
    root, _, _ = damaged
    with pytest.raises(ValueError, match=r"max_bad_fraction=0\.001 allows") as caught:
        read_pool(Flickr8k(root), max_bad_fraction=0.001, quarantine_to=tmp_path / "out", progress=False)
    message = str(caught.value)
    for part in ("53 of 300 pairs", "30 x image: truncated", "10 x image: missing file", "3 x caption", "=0.177"):
        assert part in message
    assert pq.read_table(tmp_path / "out" / "quarantine.parquet").num_rows == 53
