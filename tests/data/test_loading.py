from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tldr.data.images import ImageStore
from tldr.data.loading import AUGMENTATIONS, PairsData, PairsDataset, RandAugment, collate, ordered_loader, transform
from tldr.data.order import ShuffledBatches
from tldr.pairs import Pairs


@pytest.fixture
def pairs(tmp_path, picture) -> Pairs:
    """Twelve pairs of six pictures; the pictures of uid 04 and 05 cannot be decoded."""
    for i in range(6):
        picture(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:700])
    rows = range(12)
    return Pairs.build(
        {
            "uid": [f"{i:02d}" for i in rows],
            "image": [f"{i // 2}.png" for i in rows],
            "caption": [f"caption {i}" for i in rows],
        },
        root=tmp_path,
    )


def epochs(data: PairsData, count: int = 2) -> list[list[int]]:
    loader = data.train_dataloader()
    return [[row for batch in loader for row in batch["rows"].tolist()] for _ in range(count)]


def test_the_order_depends_on_the_seed_alone(tiny_pool):
    data = partial(PairsData, tiny_pool, image_size=8, batch_size=32)
    first = epochs(data(seed=3))
    torch.manual_seed(99)
    torch.randn(5)
    assert epochs(data(seed=3)) == first
    assert epochs(data(seed=3, num_workers=2)) == first
    assert epochs(data(seed=3, augment="randaugment")) == first
    assert epochs(data(seed=3, augment="vilt")) == first
    assert epochs(data(seed=4)) != first


def test_an_epoch_is_full_batches_of_different_pairs(tiny_pool):
    data = PairsData(tiny_pool, image_size=8, batch_size=32)
    assert {len(batch["captions"]) for batch in data.train_dataloader()} == {32}
    one, other = epochs(data)
    assert len(one) == len(set(one)) == 384
    assert one != other
    with pytest.raises(ValueError, match="batch_size=401 is more than the 400 pairs"):
        PairsData(tiny_pool, image_size=8, batch_size=401)


def test_a_batch_holds_its_pairs(tiny_pool):
    dataset = PairsDataset(tiny_pool, image_size=32)
    batches = list(ordered_loader(dataset, batch_size=150))
    assert [len(batch["captions"]) for batch in batches] == [150, 150, 100]
    assert torch.cat([batch["rows"] for batch in batches]).tolist() == list(range(400))
    assert [text for batch in batches for text in batch["captions"]] == tiny_pool.captions.to_pylist()
    assert not any(error for batch in batches for error in batch["errors"])
    images = torch.cat([batch["images"] for batch in batches])
    assert images.dtype == torch.uint8
    store = ImageStore(tiny_pool.root)
    for row in (0, 149, 150, 399):  # pictures of the size that is asked for come as they are
        expected = np.asarray(store.load(tiny_pool.images[row].as_py()))
        assert np.array_equal(images[row].permute(1, 2, 0), expected)


def test_workers_change_nothing(tiny_pool):
    dataset = PairsDataset(tiny_pool, image_size=16)
    for one, other in zip(
        ordered_loader(dataset, batch_size=150), ordered_loader(dataset, batch_size=150, num_workers=1), strict=True
    ):
        assert torch.equal(one["images"], other["images"])
        assert one["captions"] == other["captions"]


def test_pairs_of_one_picture_share_its_number(pairs):
    batch = collate([PairsDataset(pairs, image_size=8)[row] for row in (0, 1, 2, 11)])
    one, same, *others = batch["image_ids"].tolist()
    assert one == same
    assert len({one, *others}) == 3
    assert torch.equal(batch["images"][0], batch["images"][1])


def test_copies_of_a_picture_in_an_archive_share_its_number(pairs):
    """A tar or a Parquet file with a picture for each caption: the digest says that it is one. Files are what their
    names say."""
    images = [
        "a.tar#bytes=512+9",
        "b.tar#bytes=512+9",
        "a.parquet#row=7",
        "a.parquet#row=8,column=jpg",
        "c.png",
        "d.png",
    ]
    uids = [f"{row}" for row in range(6)]
    inside = Pairs.build({"uid": uids, "image": images, "caption": uids}, root=pairs.root)
    assert len(set(PairsDataset(inside, image_size=8).image_ids)) == 6
    known = inside.with_column("image_digest", ["x", "x", "x", "y", "x", "x"])
    assert PairsDataset(known, image_size=8).image_ids.tolist() == [0, 0, 0, 1, 2, 3]
    some = inside.with_column("image_digest", ["x", None, "x", None, None, None])
    assert PairsDataset(some, image_size=8).image_ids.tolist() == [0, 1, 0, 2, 3, 4]


def test_the_cache_changes_nothing_and_spares_decoding(pairs, tmp_path):
    plain, cached = PairsDataset(pairs, image_size=8), PairsDataset(pairs, image_size=8, cache=True)
    rows = [0, 1, 6, 7, 10]
    expected = [plain[row]["image"] for row in rows]
    assert all(cached[row]["error"] == "" for row in (0, 6, 10))
    for file in tmp_path.glob("*.png"):
        file.unlink()
    assert all(torch.equal(cached[row]["image"], image) for row, image in zip(rows, expected, strict=True))
    with pytest.raises(ValueError, match=r"pair 02: 1\.png: missing file"):
        cached[2]
    with pytest.raises(ValueError, match=r"cache=true .* cannot go with augment=crop"):
        PairsDataset(pairs, image_size=8, augment="crop", cache=True)


def test_what_cannot_be_decoded_stops_the_run_with_its_uid(pairs):
    with pytest.raises(ValueError, match=r"pair 05: 2\.png: truncated.*verify=decode"):
        PairsDataset(pairs, image_size=8)[5]


def test_or_is_black_and_says_why(pairs):
    dataset = PairsDataset(pairs, image_size=8, tolerant=True, cache=True)
    batch = next(iter(ordered_loader(dataset, batch_size=12)))
    assert [row for row, error in enumerate(batch["errors"]) if error] == [4, 5]
    assert "2.png: truncated" in batch["errors"][4]
    assert not batch["images"][4:6].any()
    assert batch["images"].flatten(1).any(1).sum() == 10
    assert batch["captions"][4] == "caption 4"


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 60))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_transforms_give_square_bytes(photo, augment):
    torch.manual_seed(0)
    images = [transform(32, augment)(photo) for _ in range(12)]
    assert all(image.dtype == torch.uint8 and image.shape == (3, 32, 32) for image in images)
    distinct = len({image.numpy().tobytes() for image in images})
    assert distinct == 1 if augment == "none" else distinct > 8


def test_evaluation_sees_the_whole_picture(photo):
    expected = np.asarray(photo.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(transform(32)(photo).permute(1, 2, 0), expected)


def test_or_its_centre(photo):
    """CLIP's: the shorter side is resized to the square's, and the middle of the longer one cut out."""
    wide = np.asarray(photo.resize((48, 32), Image.Resampling.BICUBIC))
    found, turned = (
        transform(32, resize_mode="shortest")(picture).permute(1, 2, 0).numpy()
        for picture in (photo, photo.transpose(Image.Transpose.TRANSPOSE))
    )
    assert np.array_equal(found, wide[:, 8:40])
    assert np.abs(turned.swapaxes(0, 1).astype(int) - wide[:, 8:40]).max() <= 2  # rows first, then columns


@pytest.mark.parametrize("length", [1000, 1001])
def test_of_a_banner_the_centre_is_enough(length, monkeypatch):
    """To resize its ends, too, would take gigabytes."""
    ramp = np.clip(128 + 6 * (np.arange(length) - (length - 1) / 2), 0, 255).astype(np.uint8)  # of the 40 in the middle
    banner = Image.fromarray(np.broadcast_to(ramp[:, None], (20, length, 3)).copy())
    whole = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.PILToTensor()])(banner)
    resize, sizes = Image.Image.resize, []
    monkeypatch.setattr(Image.Image, "resize", lambda *given, **how: sizes.append(given[1]) or resize(*given, **how))
    found = transform(32, resize_mode="shortest")(banner)
    turned = transform(32, resize_mode="shortest")(banner.transpose(Image.Transpose.TRANSPOSE))
    assert all(max(size) <= 32 * 8.1 for size in sizes)
    assert len(sizes) == 2
    assert (found.int() - whole.int()).abs().max() <= 3  # a pixel of the square is 3.75
    assert (turned.swapaxes(1, 2).int() - found.int()).abs().max() <= 2


def test_randaugment_has_blips_ten_operations(photo, monkeypatch):
    # BLIP, data/__init__.py: RandomAugment(2, 5, isPIL=True, augs=[...])
    blip = "Identity AutoContrast Equalize Brightness Sharpness ShearX ShearY TranslateX TranslateY Rotate".split()
    assert sorted(RandAugment._AUGMENTATION_SPACE) == sorted(blip)
    torch.manual_seed(0)
    augment, drawn = RandAugment(2, 5), set()
    apply = augment._apply_image_or_video_transform

    def watch(image, name, *given, **options):
        drawn.add(name)
        return apply(image, name, *given, **options)

    monkeypatch.setattr(augment, "_apply_image_or_video_transform", watch)
    for _ in range(60):
        augment(photo)
    assert drawn == set(blip)


def test_randaugment_has_blips_magnitudes(photo, monkeypatch):
    """Half of what is drawn is done, at level 5 of 10: half of 30 degrees, of a shear of 0.3, and of ten pixels."""
    torch.manual_seed(0)
    augment, drawn = RandAugment(2, 5), []
    apply = augment._apply_image_or_video_transform

    def watch(image, name, magnitude, **options):
        drawn.append((name, round(magnitude, 6)))
        return apply(image, name, magnitude, **options)

    monkeypatch.setattr(augment, "_apply_image_or_video_transform", watch)
    for _ in range(300):
        augment(photo)
    signed = {"ShearX": 0.15, "ShearY": 0.15, "TranslateX": 5, "TranslateY": 5, "Rotate": 15}
    plain = {"Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness"}
    assert set(drawn) == {(name, sign * size) for name, size in signed.items() for sign in (-1, 1)} | {
        (name, 0) for name in plain
    }
    assert len(drawn) == 600
    idle = sum(name == "Identity" for name, _ in drawn)
    assert 0.5 < idle / 600 < 0.6  # half of all, and of the others a tenth
    same = apply(photo, "Brightness", 0.0, interpolation=augment.interpolation, fill=augment._fill)
    assert np.array_equal(np.asarray(same), np.asarray(photo))
    moved = apply(photo, "TranslateX", 5.0, interpolation=augment.interpolation, fill=augment._fill)
    assert (np.asarray(moved)[:, :5] == 128).all()
    assert np.array_equal(np.asarray(moved)[:, 5:], np.asarray(photo)[:, :-5])


def test_vilts_fine_tuning_crops_and_mirrors_nothing(photo, monkeypatch):
    whole, operations = transform(32)(photo), v2.RandAugment._AUGMENTATION_SPACE
    assert not {"Invert", "Cutout"} & set(operations)
    monkeypatch.setattr(v2.RandAugment, "_AUGMENTATION_SPACE", {"Identity": operations["Identity"]})
    assert all(torch.equal(transform(32, "vilt")(photo), whole) for _ in range(5))


def test_an_unknown_augmentation_is_named():
    with pytest.raises(ValueError, match="augment='flip'; choose from none, crop, randaugment"):
        transform(32, "flip")


def test_columns_come_as_they_are(tiny_pool):
    pairs = tiny_pool.with_column("answers", [[str(i)] * (i % 3) for i in range(400)])
    pairs = pairs.with_column("label", [True] * 400)
    data = PairsData(pairs, image_size=8, batch_size=32, columns=("answers", "label"))
    batch = next(iter(data.train_dataloader()))
    assert batch["columns"]["answers"] == [[str(row)] * (row % 3) for row in batch["rows"].tolist()]
    assert batch["columns"]["label"] == [True] * 32
    assert "images_2" not in batch
    with pytest.raises(ValueError, match=r"have no column lable; they have uid, .*label"):
        PairsDataset(pairs, image_size=8, columns=("lable",))


def test_a_second_picture_is_decoded_like_the_first(pairs):
    pairs = pairs.with_column("image_2", [f"{(i + 6) // 2 % 6}.png" for i in range(12)])
    for cache in (False, True):
        dataset = PairsDataset(pairs, image_size=8, columns=("image_2",), cache=cache, tolerant=True)
        batch = next(iter(ordered_loader(dataset, batch_size=12)))
        assert batch["columns"] == {}
        assert torch.equal(batch["images_2"], batch["images"].roll(6, 0))
        assert [row for row, error in enumerate(batch["errors"]) if error] == [4, 5, 10, 11]
    with pytest.raises(ValueError, match=r"pair 10: 2\.png: truncated"):
        PairsDataset(pairs, image_size=8, columns=("image_2",))[10]


def pictures(data: PairsData, count: int) -> list[torch.Tensor]:
    loader, found = data.train_dataloader(), []
    while len(found) < count:
        found += [batch["images"] for batch in loader]
    return found[:count]


@pytest.mark.parametrize("augment", ["randaugment", "vilt"])
def test_augmentation_depends_on_the_seed_and_the_place_alone(tiny_pool, augment):
    data = partial(PairsData, tiny_pool, image_size=8, batch_size=100, augment=augment)
    expected = pictures(data(seed=3), 5)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert all(map(torch.equal, pictures(data(seed=3, num_workers=2), 5), expected))
    assert all(map(torch.equal, pictures(data(seed=3), 5), expected))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(pictures(data(seed=4), 1)[0], expected[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_another_was(tiny_pool, num_workers):
    data = partial(PairsData, tiny_pool, image_size=8, batch_size=100, augment="crop", num_workers=num_workers)
    expected = pictures(data(), 8)
    for taken in (2, 4, 6):  # in an epoch of 4, at its end, and in the second
        first = data()
        loader, left = first.train_dataloader(), taken
        while left:
            for _ in loader:  # workers have prepared more than was taken
                left -= 1
                if not left:
                    break
        second = data()
        second.load_state_dict(first.state_dict())
        assert all(map(torch.equal, pictures(second, 8 - taken), expected[taken:]))


def test_processes_share_every_batch(tiny_pool):
    """Two with batches of 50 see together what one with batches of 100 sees."""
    one, *both = (
        [list(batch) for batch in ShuffledBatches(400, size, seed=1, rank=rank, ranks=ranks)]
        for size, rank, ranks in ((100, 0, 1), (50, 0, 2), (50, 1, 2))
    )
    assert [a + b for a, b in zip(*both, strict=True)] == one
    with pytest.raises(ValueError, match="batch_size=300 in each of 2 processes is more than the 400 pairs"):
        ShuffledBatches(400, 300, seed=1, ranks=2)
    data = PairsData(tiny_pool, image_size=8, batch_size=100)
    data.load_state_dict({"taken": 3, "ranks": 2})
    with pytest.raises(ValueError, match="interrupted with 2 processes and cannot go on with 1"):
        data.train_dataloader()


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_an_epoch_shows_every_group_for_its_share(balance):
    groups = np.array([0, 1, 2, 3, 3, 3, 3, 3, 3, 4, 4, 5])
    drawn = ShuffledBatches(12, 12, seed=1, groups=groups, balance=balance)
    orders = np.stack([drawn.order(epoch) for epoch in range(600)])
    shown = np.stack([np.bincount(groups[order], minlength=6) for order in orders])
    shares = np.bincount(groups) ** (1 - balance)
    shares *= 12 / shares.sum()
    assert (np.abs(shown - shares) < 1).all()  # rounded up or down
    np.testing.assert_allclose(shown.mean(0), shares, atol=0.1)
    once = np.bincount(orders.ravel(), minlength=12)[3:9]
    assert once.min() > 0.6 * once.max()  # the rows of a group take turns
    assert len({tuple(order) for order in orders.tolist()}) == 600
    assert (drawn.order(3) == orders[3]).all()
    alone = ShuffledBatches(12, 12, seed=1, groups=np.arange(12), balance=balance)
    assert sorted(alone.order(0)) == list(range(12))


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_captions_that_repeat_are_drawn_less(tmp_path, picture, balance):
    picture(tmp_path / "a.png")
    captions = ["the same"] * 64 + [f"caption {i}" for i in range(64)]
    rows = {"uid": [f"{i:03d}" for i in range(128)], "image": ["a.png"] * 128, "caption": captions}
    pairs = Pairs.build(rows, root=tmp_path)
    data = PairsData(pairs, image_size=8, batch_size=32, balance=balance)
    drawn = np.array(epochs(data, 100))
    copies = 64 ** (1 - balance)
    assert (drawn < 64).mean() == pytest.approx(copies / (copies + 64), rel=0.1)
    assert len(set(drawn.ravel())) > 120
    assert epochs(PairsData(pairs, image_size=8, batch_size=32, balance=balance), 2) == drawn[:2].tolist()
    wrong: Any
    for wrong in (-1, 2, float("nan"), "abc"):
        with pytest.raises(ValueError, match=f"balance={wrong!r} must be from 0, which draws all pairs alike, to 1"):
            PairsData(pairs, image_size=8, batch_size=32, balance=wrong)
