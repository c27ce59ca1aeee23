"""Scores against their definitions, computed by hand; what is counted in training, against a plain count."""

import copy
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tldr.data.loading import PairsData, PairsDataset, collate
from tldr.engine import Local
from tldr.ledger import Ledger
from tldr.model.base import load_model
from tldr.model.classifier import Classifier
from tldr.nn.convnet import moved
from tldr.nn.snapshot import Snapshot
from tldr.pairs import Pairs
from tldr.signal.extract import extract
from tldr.tasks.fit import fit
from tldr.tasks.scorer import score

N, SIZE = 40, 8
IMAGE = {"backbone": "convnet", "image_size": SIZE, "channels": 4, "patch_size": 2}
VIT = {"backbone": "conv_stem", "image_size": 16, "width": 8, "depth": 1, "heads": 2}
OPTIMIZER = {"lr": 1e-2, "schedule": "constant"}


@pytest.fixture
def pool(tmp_path) -> Pairs:
    return pool_of(N, tmp_path)


def pool_of(count: int, folder: Path) -> Pairs:
    """Reds and blues; every fifth is labelled wrongly."""
    rng = np.random.default_rng(0)
    labels = []
    for i in range(count):
        pixels = rng.integers(0, 90, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels[..., 2 * (i % 2)] += 120
        Image.fromarray(pixels).save(folder / f"{i}.png")
        labels.append("red" if (i % 2 == 0) != (i % 5 == 4) else "blue")
    columns = {"uid": [f"{i:03}" for i in range(count)], "image": [f"{i}.png" for i in range(count)]}
    return Pairs.build({**columns, "caption": ["x"] * count, "label": labels}, root=folder)


def build(**options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**({"image": IMAGE, "optimizer": OPTIMIZER, "classes": ["blue", "red"]} | options))


def batch_of(pool: Pairs, rows: range, size: int = SIZE) -> Any:
    dataset = PairsDataset(pool, image_size=size, columns=("label", "uid"))
    return collate([dataset[row] for row in rows])


def snapshot(model: Classifier, member: int) -> Snapshot:
    found = model.early[member]
    assert isinstance(found, Snapshot)
    return found


trainer = partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)


def train(pool: Pairs, folder, *, steps: int = 24, **options: Any) -> Classifier:
    def model(**changes: Any) -> Classifier:
        return build(**({"classes": None, "members": 2, "early_steps": 5} | options | changes))

    model.learns_tokenizer = False  # pyright: ignore[reportFunctionMemberAccess]
    module, _ = fit(pool, model=model, trainer=trainer, folder=folder, max_steps=steps, batch_size=8, seed=0)
    assert isinstance(module, Classifier)
    return module


@pytest.mark.parametrize("image", [IMAGE, VIT], ids=["convnet", "vit"])
def test_el2n_and_grand_are_those_of_the_definition(pool, image):
    """Sample by sample, with autograd."""
    size = image["image_size"]
    model, batch = build(image=image, members=2), batch_of(pool, range(6), size)
    for _ in range(3):  # running statistics other than 0 and 1
        model.losses(batch)
    model.eval().keep_early(3)
    early = copy.deepcopy(model.members)
    for parameter in model.members.parameters():  # what came later is not looked at
        parameter.data.add_(1.0)
    found = model.signals(batch)
    labels = torch.tensor([model.places[label] for label in batch["columns"]["label"]])
    el2n, grand = torch.zeros(6), torch.zeros(6)
    for member in early:
        for i in range(6):
            logits = member(batch["images"][i : i + 1])
            target = F.one_hot(labels[i : i + 1], 2)
            el2n[i] += (logits.softmax(1) - target).norm().detach() / 2
            slopes = torch.autograd.grad(F.cross_entropy(logits, labels[i : i + 1]), list(member.parameters()))
            grand[i] += torch.cat([slope.flatten() for slope in slopes]).norm() / 2
    torch.testing.assert_close(found["el2n"], el2n, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["grand"], grand, rtol=1e-3, atol=1e-6)
    assert found["embedding"].norm(dim=1).tolist() == pytest.approx([1.0] * 6)


def test_forgetting_is_what_a_plain_count_finds(pool, tmp_path, monkeypatch):
    seen: dict[int, list[list[bool]]] = defaultdict(list)
    count = Classifier._count

    def watch(self, batch, now):
        for row, right in zip(batch["rows"].tolist(), now.tolist(), strict=True):
            seen[row].append(right)
        count(self, batch, now)

    monkeypatch.setattr(Classifier, "_count", watch)
    model = train(pool, tmp_path, steps=40)
    most = max(map(len, seen.values()))
    expected = []
    for row in range(N):
        for right in zip(*seen[row], strict=True):  # of each member
            flips = sum(a and not b for a, b in pairwise(right))
            expected.append(flips if any(right) else most)
    expected = np.reshape(expected, (N, 2)).mean(1)
    assert len(set(expected)) > 2, "the test wants pairs that were forgotten and pairs that were not"
    signals = extract(pool, load_model(tmp_path), folder=tmp_path / "signals")  # pyright: ignore
    np.testing.assert_allclose(signals["forgetting"].read(), expected)
    assert model.classes == ["blue", "red"]


def test_what_was_never_right_counts_as_most(pool):
    model = build()
    model.prepare_rows(N)
    batch = batch_of(pool, range(2))
    for right in ([1, 0], [0, 0], [1, 0], [0, 0]):
        model._count(batch, torch.tensor(right, dtype=torch.bool)[:, None])
    assert model._forgetting(batch).tolist() == [2, 4]
    # What was not shown at all is not the hardest: nobody knows.
    assert model._forgetting(batch_of(pool, range(1, 4))).isnan().tolist() == [False, True, True]


def test_of_other_pairs_there_is_no_count(pool, tmp_path):
    model = train(pool, tmp_path)
    other = Pairs.build(pool.table.set_column(0, "uid", [[f"other {i}" for i in range(N)]]), root=pool.root)
    found = model.signals(batch_of(other, range(4)))
    assert found["forgetting"].isnan().all()
    assert found["el2n"].isfinite().all()
    few = train(pool.take(np.arange(16)), tmp_path / "few", steps=2, early_steps=1)
    assert few.signals(batch_of(pool, range(12, 20)))["forgetting"].isnan().tolist() == [False] * 4 + [True] * 4


def test_the_early_weights_are_those_of_their_step(pool, tmp_path):
    whole, short = train(pool, tmp_path / "whole", steps=24), train(pool, tmp_path / "short", steps=5)
    batch = batch_of(pool, range(N))
    torch.testing.assert_close(whole.signals(batch)["el2n"], short.signals(batch)["el2n"])
    now = short.members.state_dict()
    kept = {
        f"{i}.{name}": value for i in range(2) for state in snapshot(short, i).state() for name, value in state.items()
    }
    assert set(kept) == set(now)
    assert all(torch.equal(kept[name], now[name]) for name in now)
    shares = train(pool, tmp_path / "shares", steps=24, early_steps=5 / 24)
    assert int(shares.early_step) == int(whole.early_step) == 5
    assert (tmp_path / "whole" / "model.ckpt").is_file()
    again = load_model(tmp_path / "whole")
    assert isinstance(again, Classifier)
    torch.testing.assert_close(again.signals(batch), whole.signals(batch))


def test_a_class_that_few_pictures_have_is_learned(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("tldr.tasks.fit.CORPUS", 3)  # so many captions are looked at: of a large pool not all are
    labels = ["green" if row == 1 else label for row, label in enumerate(pool.column("label"))]
    assert train(pool.with_column("label", labels), tmp_path, steps=6).classes == ["blue", "green", "red"]


def test_other_labels_of_the_same_pictures_are_asked_about(pool, tmp_path):
    options: Any = {"cache": tmp_path / "cache", "engine": Local(), "device": torch.device("cpu"), "batch_size": 8}
    ask = partial(score, model=train(pool, tmp_path), ledger=Ledger(), num_workers=0, **options)
    turned = pool.with_column("label", [{"red": "blue", "blue": "red"}[label] for label in pool.column("label")])
    before, after = ask(pool)["el2n"].read(), ask(turned)["el2n"].read()
    assert np.all(before != after)
    np.testing.assert_array_equal(ask(pool)["el2n"].read(), before)


def test_wrong_labels_are_harder(tmp_path):
    # Too many to be learned by heart, and slowly: N at OPTIMIZER's rate are, more or less, as the processor rounds.
    count, slow = 4 * N, {**OPTIMIZER, "lr": 1e-3}
    pool = pool_of(count, tmp_path)
    model = train(pool, tmp_path, steps=120, early_steps=100, shift=None, optimizer=slow)
    found, wrong = model.signals(batch_of(pool, range(count))), torch.arange(count) % 5 == 4
    for name in ("el2n", "grand"):
        assert found[name][wrong].mean() > 1.5 * found[name][~wrong].mean()


def test_members_do_not_know_of_each_other(pool):
    """The first of two learns what it learns alone, also where gradients are clipped."""
    first = []
    for members in (1, 2):
        model, data = (
            build(members=members, shift=None),
            PairsData(pool, image_size=SIZE, batch_size=8, columns=("label", "uid")),
        )
        trainer(max_steps=6, gradient_clip_val=1e-3, logger=False, enable_checkpointing=False).fit(model, data)
        first.append(model.members[0].state_dict())
    torch.testing.assert_close(first[0], first[1])
    begun = build(shift=None).members[0].state_dict()
    assert not torch.allclose(first[0]["head.weight"], begun["head.weight"])


def test_prediction_is_the_mean_over_members(pool, tmp_path):
    model, batch = train(pool, tmp_path, steps=60), batch_of(pool, range(N))
    p = model.predict(batch["images"])
    torch.testing.assert_close(p, torch.stack([m(batch["images"]).softmax(1) for m in model.members]).mean(0).detach())
    right = np.array([model.classes[place] for place in p.argmax(1).tolist()]) == pool.column("label")
    assert right[np.arange(N) % 5 != 4].mean() > 0.9


def test_pictures_are_moved_and_mirrored():
    images = torch.arange(5 * 6).view(1, 1, 5, 6).expand(400, 3, 5, 6)
    torch.manual_seed(0)
    found = moved(images, 2)
    padded = F.pad(images[:1].float(), (2, 2, 2, 2), mode="reflect")[0, 0].long()
    windows = [padded[y : y + 5, x : x + 6] for y in range(5) for x in range(5)]
    possible = [window for each in windows for window in (each, each.flip(1))]
    which = [next(i for i, each in enumerate(possible) if torch.equal(each, one[0])) for one in found]
    assert len(set(which)) == 50  # each of them occurs
    assert torch.equal(
        moved(images, 0).flatten(1).unique(dim=0), torch.stack([images[0], images[0].flip(2)]).flatten(1)
    )


def test_errors_name_the_key(pool, tmp_path):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"members": 0}, "model.members=0"),
        ({"early_steps": 1.5}, r"model.early_steps=1.5; take a number of steps"),
        ({"early_steps": 0}, "model.early_steps=0"),
        ({"shift": 1.0}, "model.shift=1.0"),
        ({"image": {**IMAGE, "image_size": 4}}, "image_size=4 is too small"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match="early_steps=30 is past the end of the run, step 24"):
        train(pool, tmp_path, early_steps=30)
    with pytest.raises(ValueError, match="these pairs have no column kind"):
        train(pool, tmp_path, column="kind")
    with pytest.raises(ValueError, match=r"model.column=label: .* 1 different labels, and pairs without one"):
        build(classes=None).prepare_table(pa.table({"label": ["a", None]}))
    model, batch = build(), batch_of(pool, range(4))
    strange: Any = {**batch, "columns": {**batch["columns"], "label": ["green"] * 4}}
    bare: Any = {**batch, "columns": {}}
    with pytest.raises(ValueError, match="never trained"):
        model.signals(batch)
    with pytest.raises(ValueError, match="'green' is none of the 2 classes"):
        model.losses(strange)
    with pytest.raises(ValueError, match=r"without their labels \(column label\)"):
        model.losses(bare)
    with pytest.raises(ValueError, match="no classes to choose from"):
        build(classes=None).predict(batch["images"])
