import json

import pytest

from tldr.data.base import Bad, Row
from tldr.data.coco import Coco
from tldr.data.pool import read_pool

COCO = {
    "info": {},
    "images": [
        {"id": 1, "file_name": "000001.jpg", "width": 4},
        {"id": 2, "file_name": "000002.jpg"},
        {"id": 3, "file_name": "000003.jpg"},
    ],
    "annotations": [
        {"id": 11, "image_id": 2, "caption": "two\n"},
        {"id": 12, "image_id": 1, "caption": "one"},
        {"id": 13, "image_id": 2, "caption": "two again"},
        {"id": 14, "image_id": 9, "caption": "of no picture"},
        {"id": 15, "image_id": 1, "caption": None},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": f"{'train' if split in ('train', 'restval') else 'val'}2014",
            "filename": f"{number}.jpg",
            "cocoid": 100 + number,
            "split": split,
            "sentences": [{"raw": f"{split} {n}", "sentid": 10 * number + n, "tokens": []} for n in range(2)],
        }
        for number, split in enumerate(["train", "val", "test", "restval"])
    ],
}


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_coco_captions(tmp_path):
    assert list(Coco(write(tmp_path / "a.json", COCO)).rows()) == [
        Row("000002.jpg", "two\n", "11", {"image_id": 2}, "a.json annotation 0"),
        Row("000001.jpg", "one", "12", {"image_id": 1}, "a.json annotation 1"),
        Row("000002.jpg", "two again", "13", {"image_id": 2}, "a.json annotation 2"),
        Bad("", b"of no picture", "read", "no image: a.json annotation 3", "14"),
        Bad("000001.jpg", b"", "caption", "no caption: a.json annotation 4", "15"),
        Bad("000003.jpg", b"", "caption", "no caption: a.json has none for this image"),
    ]


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("all", ["train2014/0.jpg", "val2014/1.jpg", "val2014/2.jpg", "train2014/3.jpg"]),
        ("train", ["train2014/0.jpg", "train2014/3.jpg"]),
        ("restval", ["train2014/3.jpg"]),
        ("val", ["val2014/1.jpg"]),
        ("test", ["val2014/2.jpg"]),
    ],
)
def test_karpathy_splits(tmp_path, split, names):
    rows = list(Coco(write(tmp_path / "dataset_coco.json", KARPATHY), split=split).rows())
    assert [row.image for row in rows] == [name for name in names for _ in range(2)]
    for row in rows:
        assert isinstance(row, Row)
        number = int(row.image.partition("/")[2][0])
        assert row.uid in (f"{number}0" if number else "0", f"{number}1" if number else "1")
        assert row.extra["image_id"] == 100 + number
        assert row.caption.startswith(row.extra["split"])


def test_an_id_of_two_pictures_names_none(tmp_path):
    """As where two files were put together, whose ids both count from 1."""
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "c.png"}, {"id": 1, "file_name": "b.png"}]
    captions = [{"id": n, "image_id": image, "caption": "x"} for n, image in enumerate((1, 2))]
    write(tmp_path / "a.json", {"images": images, "annotations": [*captions, None]})
    bad, row, nothing = Coco(tmp_path / "a.json").rows()
    assert bad == Bad(
        "", b"x", "read", "image id of two pictures: 1 is that of a.png and of b.png, a.json annotation 0", "0"
    )
    assert isinstance(row, Row)
    assert row.image == "c.png"
    assert isinstance(nothing, Bad)


@pytest.mark.parametrize("sentences", [None, "text"])
def test_sentences_that_are_no_list_are_no_files_of_karpathy(tmp_path, sentences):
    write(tmp_path / "a.json", {"images": [{"filename": "a.png", "sentences": sentences}]})
    with pytest.raises(ValueError, match=r"a\.json is neither COCO's"):
        list(Coco(tmp_path / "a.json").rows())


def test_test_pictures_among_all_are_told(tmp_path, capsys):
    """Who reduces and trains on all of them has nothing to test on."""
    file = write(tmp_path / "dataset_coco.json", KARPATHY)
    list(Coco(file, split="train").rows())
    assert not capsys.readouterr().out
    list(Coco(file).rows())
    assert "dataset_coco.json: 1 pictures of restval, 1 pictures of test, " in (said := capsys.readouterr().out)
    assert "data.split=train leaves val and test to be tested on" in said


def test_karpathys_flickr8k_has_no_folders(tmp_path):
    images = [{"filename": "a.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": "x ", "sentid": 5}]}]
    images += [{"filename": "b.jpg", "imgid": 1, "split": "train", "sentences": []}]
    assert list(Coco(write(tmp_path / "a.json", {"images": images})).rows()) == [
        Row("a.jpg", "x ", "5", {"image_id": 0, "split": "train"}, "a.json image 0"),
        Bad("b.jpg", b"", "caption", "no caption: a.json image 1"),
    ]


def test_a_test_split_is_an_evaluation_set(tmp_path):
    """COCO's 5k and Flickr30k's 1k: the pictures of one split, each with all of its captions, five or more."""
    for dataset, folder in (("coco", "val2014"), ("flickr30k", None)):
        images = [
            {
                "filename": f"{number}.jpg",
                "imgid": number,
                "split": "test" if number % 3 else "train",
                "sentences": [{"raw": f"{number} {n}", "sentid": 10 * number + n} for n in range(5 + number % 2)],
                **({"filepath": folder, "cocoid": 100 + number} if folder else {}),
            }
            for number in range(30)
        ]
        file = write(tmp_path / f"dataset_{dataset}.json", {"dataset": dataset, "images": images})
        pairs = read_pool(Coco(file, split="test"), verify="none", progress=False).pairs
        captions = pairs.table.group_by("image").aggregate([("caption", "count")]).to_pylist()
        assert len(captions) == 20
        for row in captions:
            number = int(row["image"].rpartition("/")[2].removesuffix(".jpg"))
            assert row["image"].startswith("val2014/") == (dataset == "coco")
            assert row["caption_count"] == 5 + number % 2
        assert set(pairs.table["split"].to_pylist()) == {"test"}


def test_a_wrong_split_or_file_says_what_there_is(tmp_path):
    karpathy = write(tmp_path / "k.json", KARPATHY)
    with pytest.raises(ValueError, match=r"data\.split=dev is not in .*k\.json; .*from all, restval, test, train, val"):
        list(Coco(karpathy, split="dev").rows())
    with pytest.raises(ValueError, match=r"data\.split=val: "):
        list(Coco(write(tmp_path / "c.json", COCO), split="val").rows())
    for number, wrong in enumerate(([], {"images": 1}, {"images": [{"file_name": "a.jpg"}]})):
        with pytest.raises(ValueError, match="is neither COCO's"):
            list(Coco(write(tmp_path / f"{number}.json", wrong)).rows())
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"cut\.json is not JSON"):
        list(Coco(tmp_path / "cut.json").rows())
    with pytest.raises(ValueError, match=r"data\.annotations="):
        Coco(tmp_path / "none.json")


def test_hostile_captions_survive(tmp_path, all_hostile):
    annotations = [{"id": n, "image_id": 1, "caption": caption} for n, caption in enumerate(all_hostile)]
    sentences = [{"sentid": n, "raw": caption} for n, caption in enumerate(all_hostile)]
    files = [
        write(tmp_path / "c.json", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}),
        write(tmp_path / "k.json", {"images": [{"filename": "a.jpg", "split": "train", "sentences": sentences}]}),
    ]
    pools = [read_pool(Coco(file), verify="none", progress=False) for file in files]
    for pool in pools:
        assert dict(zip(map(int, pool.pairs.uids.to_pylist()), pool.pairs.captions.to_pylist(), strict=True)) == dict(
            enumerate(all_hostile)
        )
    assert pools[0].pairs.hash == pools[1].pairs.hash


def test_bytes_that_are_no_utf8_cost_one_caption(tmp_path):
    (tmp_path / "a.json").write_bytes(json.dumps(COCO).replace("one", "caf#").encode().replace(b"#", b"\xe9"))
    pool = read_pool(Coco(tmp_path / "a.json"), verify="none", max_bad_fraction=0.9, progress=False)
    assert pool.pairs.uids.to_pylist() == ["11", "13"]
    assert (
        "caption is not UTF-8: byte 0xe9 after 3 characters, a.json annotation 1"
        in pool.quarantine["error"].to_pylist()
    )


def test_the_real_file(test_data):
    file = test_data / "coco" / "captions_val2017.json"
    pool = read_pool(Coco(file), verify="none", progress=False)
    assert (pool.read, len(pool.pairs)) == (25014, 25014)
    assert len(pool.pairs.images.unique()) == 5000
    raw = json.loads(file.read_text(encoding="utf-8"))["annotations"]
    assert dict(zip(pool.pairs.uids.to_pylist(), pool.pairs.captions.to_pylist(), strict=True)) == {
        str(annotation["id"]): annotation["caption"] for annotation in raw
    }
