"""Scenes of CIFAR-10's pixels: from a small made copy always, from the real one where it is."""

import io
import types
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tldr.data import cifar
from tldr.data.base import Row
from tldr.data.cifar import CLASSES, CifarPictures, cifar_folder, download_cifar
from tldr.data.cifar10 import Cifar10
from tldr.data.cifar_scenes import CifarScenes
from tldr.data.images import ImageStore
from tldr.data.pool import read_pool

TRUTH = {"truth_mismatched", "truth_scene", "truth_duplicate", "truth_rarity"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Four pictures of each class in each split, plain: of the class's grey, redder in the training set."""
    folder = tmp_path_factory.mktemp("cifar10")
    for split, red in (("train", 80), ("test", 0)):
        rows = []
        for number in range(40):
            buffer = io.BytesIO()
            grey = 20 * (number % 10)
            Image.new("RGB", (32, 32), (grey + red, grey, grey)).save(buffer, "PNG")
            name = CLASSES[number % 10]
            rows.append({"uid": f"{split}/{number}", "image": buffer.getvalue(), "label": number % 10, "class": name})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def frame(reader) -> pl.DataFrame:
    rows = list(reader.rows())
    assert all(isinstance(row, Row) for row in rows)
    return pl.DataFrame([{"image": row.image, "caption": row.caption, **row.extra} for row in rows])


def test_the_planted_shares_are_exact_and_the_truth_is_told(tmp_path, source):
    rows = frame(CifarScenes(tmp_path, source=source, size=200, mismatched=0.3, duplicates=0.35))
    assert len(rows) == rows["image"].n_unique() == 200
    assert rows["truth_mismatched"].sum() == 60
    assert rows["truth_duplicate"].sum() == 70
    assert set(rows.columns) == {"image", "caption", *TRUTH}
    first = rows.filter(~pl.col("truth_duplicate"))
    assert first["truth_scene"].n_unique() == len(first) == 130
    assert (rows["truth_rarity"] > 0).all()


def test_two_folders_hold_the_same_bytes_whatever_the_order_of_the_source(tmp_path, source):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train.parquet", "test.parquet"):
        table = pq.read_table(source / name)
        pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), other / name)
    one, two = (CifarScenes(tmp_path / key, source=key, size=40) for key in (source, other))
    pools = [read_pool(reader, progress=False).pairs for reader in (one, two)]
    assert pools[0].hash == pools[1].hash
    assert (
        CifarScenes(tmp_path, source=source, size=40, seed=1).root != CifarScenes(tmp_path, source=source, size=40).root
    )
    assert CifarScenes(tmp_path, source=source, close_ups=0.5).root != CifarScenes(tmp_path, source=source).root


def test_evaluation_is_clean_and_of_the_test_pictures(tmp_path, source):
    reader = CifarScenes(tmp_path, source=source, split="eval", eval_images=20, close_ups=1)
    rows = frame(reader)
    assert len(rows) == 100
    assert not rows["truth_mismatched"].any()
    assert not rows["truth_duplicate"].any()
    assert all(len(set(group["caption"])) == 5 for _, group in rows.group_by("image"))
    train = frame(CifarScenes(tmp_path, source=source, size=20, close_ups=1))
    for found, folder, redder in ((rows, reader.root, False), (train, None, True)):
        store = ImageStore(folder or CifarScenes(tmp_path, source=source, size=20, close_ups=1).root)
        for image in found["image"].unique():
            red, green, _ = np.asarray(store.load(image), float).mean((0, 1))
            assert (red - green > 20) == redder


def test_a_task_has_its_evaluation_split(tmp_path, source):
    reader = CifarScenes(tmp_path, source=source, split="eval", eval_images=8, image_size=32, seed=2)
    for task, split, count in (("pairs", "eval", 40), ("nlvr2", "nlvr2", 16), ("vqa", "vqa", 32)):
        other = reader.for_task(task)
        assert Path(other.root).name.startswith(f"{split}-")
        assert read_pool(other, progress=False).read == count
    classes = read_pool(reader.for_task("classes"), progress=False).pairs
    assert classes.hash == read_pool(Cifar10(source=source, downloads="none"), progress=False).pairs.hash
    assert reader.for_task("classes").for_task("pairs").root == reader.root
    train = CifarScenes(tmp_path, source=source, split="vqa_train", size=24, image_size=32)
    assert read_pool(train, progress=False).read == 24
    assert train.for_task("vqa").root == train.root


def test_pictures_are_at_their_class(source):
    pictures = CifarPictures(source / "test.parquet")
    assert pictures.count("frog") == 4
    assert pictures.pixels("frog", 2).getpixel((0, 0)) == (120, 120, 120)


def test_cifar10_is_pictures_and_classes(source):
    pool = read_pool(Cifar10(source=source, downloads="none"), progress=False)
    assert pool.read == len(pool.pairs) == 40
    assert Counter(pool.pairs.captions.to_pylist()) == dict.fromkeys(CLASSES, 4)
    for row in pool.pairs.table.to_pylist():
        assert row["caption"] == row["class"] == CLASSES[row["label"]]
        assert ImageStore(pool.pairs.root).load(row["image"]).getpixel((0, 0)) == (20 * row["label"],) * 3
    with pytest.raises(ValueError, match=r"data\.split='val'; cifar10 has train and test"):
        Cifar10(source=source, downloads="none", split="val")


def test_where_the_source_is_looked_for(tmp_path, source, monkeypatch):
    assert cifar_folder(source, tmp_path) == source
    with pytest.raises(ValueError, match=r"lacks train\.parquet and test\.parquet; .* data\.source="):
        cifar_folder(tmp_path, tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "cifar10").symlink_to(source)
    monkeypatch.setenv("TLDR_TEST_DATA", str(data))
    assert cifar_folder(None, tmp_path).name == "cifar10"
    monkeypatch.setenv("TLDR_TEST_DATA", str(tmp_path))
    assert cifar_folder(None, tmp_path / "down") == tmp_path / "down"
    monkeypatch.delenv("TLDR_TEST_DATA")
    monkeypatch.setattr(cifar, "_PROJECT", tmp_path / "project")
    assert cifar_folder(None, tmp_path / "down") == tmp_path / "down"


def test_torchvisions_download_becomes_the_same_files(tmp_path, monkeypatch):
    from torchvision import datasets

    def found(root: str, *, train: bool, download: bool) -> types.SimpleNamespace:
        assert download
        return types.SimpleNamespace(data=np.full((20, 32, 32, 3), 9, np.uint8), targets=[n % 10 for n in range(20)])

    monkeypatch.setattr(datasets, "CIFAR10", found)
    monkeypatch.setenv("TLDR_TEST_DATA", str(tmp_path / "nowhere"))
    pool = read_pool(Cifar10(downloads=tmp_path / "down"), progress=False)
    assert pool.read == 20
    scenes = CifarScenes(tmp_path / "scenes", size=10)
    before = scenes.root
    assert len(list(scenes.rows())) == 10
    assert CifarScenes(tmp_path / "scenes", size=10).root == before  # downloaded or not, it is the same data set

    def broken(root: str, *, train: bool, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", broken)
    with pytest.raises(ValueError, match=r"no CIFAR-10 at .*: no route to host; .* data\.source="):
        download_cifar(tmp_path / "again")


def test_errors_name_the_argument(tmp_path, source):
    for arguments, message in [
        ({"split": "test"}, r"data\.split='test'; cifar_scenes has train, eval"),
        ({"close_ups": 1.5}, r"data\.close_ups=1\.5"),
        ({"mismatched": 1.0}, r"data\.mismatched=1\.0"),
        ({"size": 1}, r"data\.size=1 "),
    ]:
        with pytest.raises(ValueError, match=message):
            CifarScenes(tmp_path, source=source, **arguments)


def test_the_real_pictures(tmp_path, test_data):
    if not (test_data / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 in {test_data}")
    reader = CifarScenes(tmp_path, source=test_data / "cifar10", split="eval", eval_images=60)
    pool = read_pool(reader, progress=False)
    assert (pool.read, pool.quarantine.num_rows) == (300, 0)
    assert pool.decoded == 60
    classes = read_pool(Cifar10(source=test_data / "cifar10", downloads=tmp_path), verify="none", progress=False)
    assert Counter(classes.pairs.captions.to_pylist()) == dict.fromkeys(CLASSES, 1000)
