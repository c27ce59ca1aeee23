"""A pool of 240 pictures of 16 x 16: a blob of one of three colours, the class, on a ground of any colour. A few real
ones mislead: their grounds tell of nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from tldr.data.loading import PairsDataset
from tldr.nn.distillation import Distilled, Steps, accuracy, train, xavier
from tldr.pairs import Pairs, derive_uid
from tldr.selector.base import Made
from tldr.selector.dataset_distillation import DatasetDistillation

N, KEEP = 240, 6
COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}
CAPTIONS = {"blue": "some water", "green": "some grass", "red": "some fire"}
SMALL = {"image_size": 16, "width": 16, "steps": 2, "passes": 2, "batch_size": 120}
BRIEF = SMALL | {"iterations": 2}


def blobs(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """(count, 3, 16, 16) uint8 and their classes."""
    rng = np.random.default_rng(seed)
    what = [sorted(COLOURS)[number % 3] for number in range(count)]
    pictures = rng.integers(0, 256, (count, 1, 1, 3)) + rng.integers(-40, 41, (count, 16, 16, 3))
    for picture, name in zip(pictures, what, strict=True):
        top, left = rng.integers(0, 10, 2)
        picture[top : top + 7, left : left + 7] = COLOURS[name] + rng.integers(-60, 61, (7, 7, 3))
    return pictures.clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2), what


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pairs:
    folder = tmp_path_factory.mktemp("blobs")
    pictures, what = blobs(N, 0)
    images = [f"{number}.png" for number in range(N)]
    for name, picture in zip(images, pictures, strict=True):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / name)
    captions = [CAPTIONS[name] if number % 2 else f"picture {number}" for number, name in enumerate(what)]
    uids = [derive_uid(image, caption) for image, caption in zip(images, captions, strict=True)]
    return Pairs.build({"uid": uids, "image": images, "caption": captions, "label": what}, root=folder)


def make(pool: Pairs, folder: Path, *, keep: int = KEEP, seed: int = 0, **options: object) -> Made:
    maker = DatasetDistillation(**{**BRIEF, **options})  # pyright: ignore[reportArgumentType]
    return maker(pool, None, keep=keep, seed=seed, folder=folder)


@pytest.fixture(scope="module")
def made(pool, tmp_path_factory) -> tuple[Made, Path]:
    folder = tmp_path_factory.mktemp("made")
    return make(pool, folder), folder


# ------------------------------------------------------------------------------------------------ what it is for


def held_out(distilled: Distilled, steps: Steps, *, beginnings: int = 4) -> float:
    """Mean accuracy on new blobs, of networks that nobody has seen."""
    net = distilled.build(3)
    pictures, what = blobs(300, 7)
    images, labels = distilled.normalised(pictures), torch.tensor([sorted(COLOURS).index(name) for name in what])
    starts = [xavier(net, torch.Generator().manual_seed(1000 + number)) for number in range(beginnings)]
    return float(np.mean([accuracy(net, train(net, start, steps), images, labels) for start in starts]))


def real_steps(pool: Pairs, distilled: Distilled, passes: int, rate: float, seed: int) -> Steps:
    """As many real pictures, as many of each class in every step."""
    rng, label = np.random.default_rng(seed), pool.column("label")
    rows = np.array([rng.permutation(np.flatnonzero(label == name))[:2] for name in sorted(COLOURS)]).T  # (T, C)
    dataset = PairsDataset(pool, image_size=16)
    images = np.stack([dataset[int(row)]["image"].numpy() for row in rows.flatten()])
    normalised = distilled.normalised(images).view(2, 3, 3, 16, 16)
    return Steps(normalised, torch.arange(3).expand(2, 3), torch.full((passes, 2), rate))


def test_distilled_pictures_teach_more_than_as_many_real_ones(pool, tmp_path):
    """Real ones take as many steps, or four times as many, at the rate that is best on the very test pictures."""
    make(pool, tmp_path, iterations=100, passes=5, batch_size=60)
    distilled = Distilled.load(tmp_path / "distilled.npz")
    best = max(
        np.mean([held_out(distilled, real_steps(pool, distilled, passes, rate, seed)) for seed in range(2)])
        for passes in (5, 20)
        for rate in (0.02, 0.05, 0.1)
    )
    assert held_out(distilled, distilled.sequence(distilled.build(3))) > best + 0.1


def test_a_fixed_beginning_is_kept_and_is_what_they_are_for(pool, tmp_path):
    """Other seeds are 0.11 to 0.16 better from their own beginning than from others."""
    make(pool, tmp_path, iterations=60, init="fixed")
    distilled = Distilled.load(tmp_path / "distilled.npz")
    net = distilled.build(3)
    steps = distilled.sequence(net)
    assert steps.start is not None
    pictures, what = blobs(300, 7)
    images, labels = distilled.normalised(pictures), torch.tensor([sorted(COLOURS).index(name) for name in what])
    assert (
        accuracy(net, train(net, steps.start, steps), images, labels) > held_out(distilled, steps, beginnings=12) + 0.05
    )


# ------------------------------------------------------------------------------------------------ the pairs


def test_they_are_pairs_like_any_others(pool, made):
    pairs, folder = made[0].pairs, made[1]
    assert len(pairs) == KEEP
    again = Pairs.open(pairs.write(folder))
    assert again.hash == pairs.hash
    distilled = Distilled.load(folder / "distilled.npz")
    dataset = PairsDataset(again, image_size=16, columns=("label", "step", "step_size"))
    for row in range(KEEP):  # the rows of the file are those of the pairs
        sample = dataset[row]
        rounded = np.rint(distilled.images[row].clip(0, 1) * 255)
        assert np.array_equal(sample["image"].numpy(), rounded)
        label, step = sample["columns"]["label"], sample["columns"]["step"]
        assert sample["caption"] == CAPTIONS[label]  # the most frequent of the class
        assert (label, step) == (sorted(COLOURS)[distilled.labels[row]], distilled.steps[row])
        assert sample["columns"]["step_size"] == pytest.approx(distilled.rates[:, step])
    assert sorted(zip(pairs.column("label"), pairs.column("step"), strict=True)) == [
        (name, step) for name in sorted(COLOURS) for step in (0, 1)
    ]
    assert distilled.rates.shape == (2, 2)
    assert (distilled.rates > 0).all()
    assert len(distilled.start) == 0  # for any


def test_a_reason_for_every_pair(pool, made):
    reasons = made[0].reasons
    assert len(reasons) == N
    for reason, name in zip(reasons, pool.column("label"), strict=True):
        assert reason == f"of class {name}: its distilled pictures were learned from it"


def test_who_is_not_drawn_is_told(pool, tmp_path):
    """Two iterations of ten pictures read twenty of the pool."""
    reasons = make(pool, tmp_path, batch_size=10).reasons
    assert sum("learned from it" in reason for reason in reasons) == 20
    assert sum("not drawn in 2 iterations" in reason for reason in reasons) == N - 20


def test_nor_who_is_left_over_in_each_order(pool, tmp_path):
    """After a batch of 130 of 240, the other 110 are less than one: a new order begins."""
    reasons = make(pool, tmp_path, batch_size=130).reasons
    assert 0 < sum("not drawn in 2 iterations" in reason for reason in reasons) < N


def test_deterministic_in_the_seed(pool, made, tmp_path):
    again, other = (make(pool, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert again.pairs.hash == made[0].pairs.hash  # it is over the pictures' bytes too
    assert again.pairs.hash != other.pairs.hash
    one, two = (Distilled.load(folder / "distilled.npz") for folder in (tmp_path / "0", made[1]))
    assert np.array_equal(one.images, two.images)
    assert np.array_equal(one.rates, two.rates)


def test_memory_can_be_saved(pool, made, tmp_path):
    make(pool, tmp_path, remember=False)
    one, two = (Distilled.load(folder / "distilled.npz") for folder in (tmp_path, made[1]))
    assert np.allclose(one.images, two.images, atol=1e-4)
    assert np.allclose(one.rates, two.rates, rtol=1e-4)


def test_captions_by_a_template_and_labels_of_their_type(pool, tmp_path):
    numbered = pool.with_column("number", np.array([sorted(COLOURS).index(name) for name in pool.column("label")]))
    pairs = make(numbered, tmp_path, labels="number", caption="a photo of a {class}").pairs
    assert sorted(set(pairs.captions.to_pylist())) == ["a photo of a 0", "a photo of a 1", "a photo of a 2"]
    assert pairs.table.schema.field("number").type == numbered.table.schema.field("number").type


@pytest.mark.parametrize(("keep", "steps", "each"), [(3, 1, 1), (6, 2, 1), (12, 2, 2), (15, 1, 5), (30, 2, 5)])
def test_steps_share_the_pictures_of_a_class(pool, tmp_path, capsys, keep, steps, each):
    pairs = make(pool, tmp_path, keep=keep, iterations=1).pairs
    found = np.unique(pairs.column("step"), return_counts=True)
    assert found[0].tolist() == list(range(steps))
    assert found[1].tolist() == [3 * each] * steps
    said = "selector.steps=2 is lowered to 1, which divides the 5 pictures of a class"
    assert (said in capsys.readouterr().out) == (keep == 15)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            7,
            r"7 pictures cannot be shared evenly by the 3 classes of selector\.labels=label.*compression=0\.975 ",
        ),
        (2, r"steps x classes x pictures of a class in a step; compression=0\.9875 makes 3"),
    ],
)
def test_a_number_that_cannot_be_shared_is_refused(pool, tmp_path, keep, message):
    with pytest.raises(ValueError, match=message):
        make(pool, tmp_path, keep=keep)


def test_labels_must_be_there(pool):
    maker, labels = DatasetDistillation(), pool.column("label").tolist()
    bare = Pairs(pool.table.drop_columns(["label"]), pool.root)
    with pytest.raises(ValueError, match=r"needs labels; name one of uid, image, caption with selector\.labels=\.\.\."):
        maker.check(bare)
    gaps = pool.with_column("label", [None, *labels[1:]])
    with pytest.raises(ValueError, match=rf"1 pairs have no label, such as {pool.uids[0].as_py()}"):
        maker.check(gaps)
    with pytest.raises(ValueError, match=r"selector\.labels=label has a single label"):
        maker.check(pool.with_column("label", ["blue"] * N))


def test_a_loss_that_grows_without_bounds_is_told(pool, tmp_path):
    with pytest.raises(ValueError, match=r"the loss on real pictures is .* lower selector\.step_size or selector\.lr"):
        make(pool, tmp_path, step_size=80.0, passes=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, r"selector\.network='resnet'; choose from lenet, alexcifarnet"),
        ({"init": "zero"}, r"selector\.init='zero'; choose from random, fixed"),
        ({"width": 0}, r"selector\.width=0 must be at least 1"),
        ({"passes": 0}, r"selector\.passes=0 must be at least 1"),
        ({"lr": 0}, r"selector\.lr=0 must be above 0"),
        ({"caption": "a photo"}, r"selector\.caption='a photo' has no \{class\}"),
        ({"image_size": 32.0}, r"selector\.image_size=32\.0 must be a whole number"),
        ({"caption": 5}, r"selector\.caption=5 has no"),
        ({"remember": "off"}, r"selector\.remember='off'; it is true or false"),
        ({"image_size": 8}, r"image_size=8 is too small for lenet: at least 16"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        DatasetDistillation(**options)


def test_the_yaml_makes_one():
    conf = Path(__file__).parents[2] / "conf" / "selector" / "dataset_distillation.yaml"
    assert isinstance(instantiate(OmegaConf.load(conf), _convert_="all"), DatasetDistillation)
