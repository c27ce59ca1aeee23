"""A pool of 320 pairs: a square, of eight colours, in one of four corners, and a text embedding that tells both."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from tldr.nn.trajectory import Dual, Weights, contrastive, step
from tldr.pairs import Pairs, derive_uid
from tldr.selector import trajectory_matching
from tldr.selector.trajectory_matching import MEAN, STD, TrajectoryMatching
from tldr.signal.panel import Panel
from tldr.signal.sphere import nearest
from tldr.signal.store import Signals

N, E, KEEP = 320, 12, 8
COLOURS = np.array([[r, g, b] for r in (40, 220) for g in (40, 220) for b in (40, 220)])
SMALL: dict[str, Any] = {
    "image_size": 16,
    "width": 8,
    "depth": 2,
    "dim": 16,
    "experts": 4,
    "expert_batch": 32,
    "mini_batch": 8,
}
BRIEF: dict[str, Any] = SMALL | {"experts": 1, "iterations": 3, "start_epochs": 1}


def scenes(count: int, seed: int, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the 32 scenes, (count, 3, 16, 16) uint8 pictures and (count, E) unit text embeddings."""
    rng = np.random.default_rng(seed)
    what = np.arange(count) % 32
    pictures = rng.integers(90, 130, (count, 3, 16, 16))
    for picture, (colour, corner) in zip(pictures, zip(what // 4, what % 4, strict=True), strict=True):
        top, left = 8 * (corner // 2), 8 * (corner % 2)
        picture[:, top : top + 8, left : left + 8] = COLOURS[colour][:, None, None] + rng.integers(-30, 30, (3, 8, 8))
    words = np.random.default_rng(99)
    colours, corners = words.standard_normal((8, E)), words.standard_normal((4, E))
    texts = colours[what // 4] + corners[what % 4] + noise * rng.standard_normal((count, E))
    if noise > 0.2:
        pictures = pictures + 60 * noise * rng.standard_normal(pictures.shape)
    return what, pictures.clip(0, 255).astype(np.uint8), texts / np.linalg.norm(texts, axis=1, keepdims=True)


def written(folder: Path, noise: float = 0.2) -> tuple[Pairs, Panel]:
    what, pictures, texts = scenes(N, 0, noise)
    images, captions = (
        [f"{i}.png" for i in range(N)],
        [f"colour {w // 4} corner {w % 4}, {i}" for i, w in enumerate(what)],
    )
    for name, picture in zip(images, pictures, strict=True):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / name)
    uids = [derive_uid(image, caption) for image, caption in zip(images, captions, strict=True)]
    signals = Signals(folder / "signals", N)
    signals.write_part(0, {"text_embedding": texts[np.argsort(uids)].astype(np.float16)}, {})
    return Pairs.build({"uid": uids, "image": images, "caption": captions}, root=folder), Panel({"clip": signals})


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Pairs, Panel]:
    return written(tmp_path_factory.mktemp("squares"))


def read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def begun(pool: Pairs, made: Pairs) -> np.ndarray:
    return pool.rows_of(made.column("began_from").tolist())


# ------------------------------------------------------------------------------------------------ what it is for


def held_out_loss(images: np.ndarray, texts: np.ndarray, rate: float) -> float:
    """InfoNCE on the 32 scenes, seen for the first time, of students trained on these pairs; a mean over three."""
    nets = Dual.build(**{key: SMALL[key] for key in ("image_size", "width", "depth", "dim")}, text_width=E)
    _, pictures, words = scenes(32, 7)
    loss, rates, losses = contrastive(0.07), Weights(torch.tensor(rate), torch.tensor(rate)), []
    x, y = torch.from_numpy((images - MEAN) / STD).float(), torch.from_numpy(texts * E**0.5).float()
    for seed in range(3):
        weights = nets.draw(torch.Generator().manual_seed(1000 + seed))
        for _ in range(60):
            weights, _ = step(nets, weights, x, y, rates, loss, graph=False)
        new = torch.from_numpy((pictures / 255 - MEAN) / STD).float()
        seen = nets.image(weights.image, new), nets.text(weights.text, torch.from_numpy(words * E**0.5).float())
        losses.append(loss(*seen).item())
    return float(np.mean(losses))


def test_students_learn_more_from_what_is_made_than_from_as_many_real_pairs(tmp_path, monkeypatch):
    """Of a pool in which single pairs say little, on pairs that neither has seen, each at its best of several step
    sizes; and the matching loss falls."""
    pool, signals = written(tmp_path, noise=1.0)
    matched = watch(monkeypatch)
    maker = TrajectoryMatching(**SMALL, iterations=120, expert_epochs=2, rate_images=20, rate_texts=2, rate_steps=0.001)
    made = maker(pool, signals, keep=16, seed=0, folder=tmp_path / "made").pairs
    assert np.mean(matched[-20:]) < 0.75 * np.mean(matched[:20])
    learned, rates = read(tmp_path / "made" / "distilled.npz"), (0.1, 0.3)
    ours = min(held_out_loss(learned["images"], learned["text_embedding"], rate) for rate in rates)
    numbers = [int(name.removesuffix(".png")) for name in pool.images.to_pylist()]
    _, pictures, words = scenes(N, 0, noise=1.0)
    rng = np.random.default_rng(1)
    for rows in (begun(pool, made), *(rng.choice(N, 16, replace=False) for _ in range(2))):
        real = [numbers[row] for row in rows]
        assert ours < 0.95 * min(held_out_loss(pictures[real] / 255, words[real], rate) for rate in rates)


def watch(monkeypatch) -> list[float]:
    """The matching losses, as they come."""
    seen, original = [], trajectory_matching.matching_loss

    def matching_loss(*ends):
        loss = original(*ends)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(trajectory_matching, "matching_loss", matching_loss)
    return seen


def test_lors_lowers_the_matching_loss_and_learns_who_belongs_to_whom(given, tmp_path, monkeypatch):
    pool, signals = given
    matched = watch(monkeypatch)
    options = SMALL | {
        "experts": 2,
        "similarity": "lors",
        "rank": 2,
        "rate_similarity": 0.1,
        "rate_images": 10,
        "rate_texts": 1,
        "start_epochs": 1,
    }
    TrajectoryMatching(**options, iterations=60, rate_steps=0.001)(pool, signals, keep=KEEP, seed=0, folder=tmp_path)
    assert np.mean(matched[-10:]) < 0.95 * np.mean(matched[:10])
    learned = read(tmp_path / "distilled.npz")
    assert learned["left"].shape == learned["right"].shape == (KEEP, 2)
    assert np.abs(learned["right"]).max() > 0.001  # it began at 0
    assert np.abs(learned["diagonal"] - 1).max() > 0.0001


# ------------------------------------------------------------------------------------------------ the pairs


@pytest.mark.parametrize("keep", [1, KEEP, N])
def test_exactly_as_many_as_asked_and_they_open_again(given, tmp_path, keep):
    pool, signals = given
    made = TrajectoryMatching(**BRIEF)(pool, signals, keep=keep, seed=0, folder=tmp_path)
    assert len(made.pairs) == len(set(begun(pool, made.pairs))) == keep
    assert made.pairs.provenance["parent"] == pool.hash
    again = Pairs.open(made.pairs.write(tmp_path))
    assert again.hash == made.pairs.hash
    learned = read(tmp_path / "distilled.npz")
    assert learned["text_embedding"].shape == (keep, E)
    digests = again.column("image_digest")
    for row, name in enumerate(again.images.to_pylist()):
        file = Path(again.root) / name
        assert digests[row] == hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        shown = np.asarray(Image.open(file)).transpose(2, 0, 1) / 255
        assert np.abs(shown - learned["images"][row].clip(0, 1)).max() < 0.51 / 255  # a PNG rounds, no more


def test_every_pair_of_the_pool_has_its_reason(given, tmp_path):
    pool, signals = given
    made = TrajectoryMatching(**BRIEF)(pool, signals, keep=KEEP, seed=0, folder=tmp_path)
    rows = begun(pool, made.pairs)
    for uid, row in zip(made.pairs.uids.to_pylist(), rows, strict=True):
        assert made.reasons[row].startswith(f"the beginning of {uid}")
    others = [reason for row, reason in enumerate(made.reasons) if row not in set(rows)]
    assert len(others) == N - KEEP
    assert all(reason.startswith("learned from in the experts") for reason in others)
    told = sum(reason.count("its caption is nearest to the text of") for reason in made.reasons)
    assert told == KEEP


def test_captions_are_the_nearest_ones_and_stay_where_texts_are_not_learned(given, tmp_path):
    pool, signals = given
    every = signals["clip.text_embedding"].read().astype(np.float32)
    for learn_text in (True, False):
        maker = TrajectoryMatching(**BRIEF, learn_text=learn_text)
        made = maker(pool, signals, keep=KEEP, seed=0, folder=tmp_path / str(learn_text)).pairs
        learned = read(tmp_path / str(learn_text) / "distilled.npz")["text_embedding"]
        rows = pool.rows_of(made.column("caption_from").tolist())
        assert made.captions.to_pylist() == pool.captions.take(rows).to_pylist()
        best = (learned @ (every / np.linalg.norm(every, axis=1, keepdims=True)).T).argmax(1)
        assert np.array_equal(rows, best if learn_text else begun(pool, made))
        assert np.allclose(learned, every[begun(pool, made)], atol=1e-6) is not learn_text


def test_nearest_looks_through_all_parts(tmp_path):
    texts = np.random.default_rng(0).standard_normal((5000, E)).astype(np.float32)
    signals = Signals(tmp_path, 5000)
    for number in range(2):
        signals.write_part(number, {"text_embedding": texts[number * 4096 :][:4096]}, {})
    rows, cosine = nearest(signals["text_embedding"], 3 * texts[[4500, 7, 4096]])
    assert rows.tolist() == [4500, 7, 4096]
    assert cosine == pytest.approx(np.ones(3), abs=1e-5)


def test_an_embedding_of_zeros_is_nearest_to_none(tmp_path):
    signals = Signals(tmp_path, 3)
    signals.write_part(0, {"text_embedding": np.array([[0, 0], [1, 0], [0, 1]], np.float32)}, {})
    rows, cosine = nearest(signals["text_embedding"], np.array([[2, 0], [0, 3]], np.float32))
    assert rows.tolist() == [1, 2]
    assert cosine.tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------ seeds, caches, errors


def test_deterministic_in_the_seed_with_experts_found_or_trained_again(given, tmp_path, monkeypatch):
    """What is found on disk is what would be trained; another seed begins from other pairs, with other experts."""
    pool, signals = given
    maker = TrajectoryMatching(**BRIEF, similarity="lors", expert_rate=0.05)
    cold = Panel({"clip": Signals(tmp_path / "cold", N)})
    cold.scorers["clip"].write_part(0, {"text_embedding": signals["clip.text_embedding"].read()}, {})
    first = maker(pool, signals, keep=KEEP, seed=3, folder=tmp_path / "a")
    third = maker(pool, signals, keep=KEEP, seed=4, folder=tmp_path / "c")
    again = maker(pool, cold, keep=KEEP, seed=3, folder=tmp_path / "b")
    trained: list[int] = []
    monkeypatch.setattr(TrajectoryMatching, "_train", lambda *_: trained.append(1))
    found = maker(pool, cold, keep=KEEP, seed=3, folder=tmp_path / "d")
    assert not trained
    assert first.pairs.hash == again.pairs.hash == found.pairs.hash != third.pairs.hash
    assert first.reasons == again.reasons
    arrays, others = read(tmp_path / "a" / "distilled.npz"), read(tmp_path / "b" / "distilled.npz")
    assert all(np.array_equal(arrays[name], others[name]) for name in arrays)
    assert set(first.pairs.column("began_from")) != set(third.pairs.column("began_from"))


def test_a_missing_picture_is_refused_by_its_uid(given, tmp_path):
    pool, signals = given
    elsewhere = Pairs(pool.table, str(tmp_path))
    cold = Panel({"clip": Signals(tmp_path / "signals", N)})
    cold.scorers["clip"].write_part(0, {"text_embedding": signals["clip.text_embedding"].read()}, {})
    with pytest.raises(ValueError, match=rf"pair {pool.uids[0].as_py()}: .*verify=decode"):
        TrajectoryMatching(**BRIEF)(elsewhere, cold, keep=KEEP, seed=0, folder=tmp_path / "out")
    assert not list(tmp_path.rglob("pixels.npy"))


def test_divergence_names_the_rates(given, tmp_path):
    pool, signals = given
    maker = TrajectoryMatching(**{**BRIEF, "iterations": 40, "rate_images": 1e30})
    with pytest.raises(ValueError, match=r"the matching loss is \w+ in iteration \d+; lower selector\.rate_images"):
        maker(pool, signals, keep=KEEP, seed=0, folder=tmp_path)


def test_an_expert_that_diverges_names_its_rate(given, tmp_path):
    pool, signals = given
    with pytest.raises(ValueError, match=r"an expert diverged; lower selector\.expert_rate=1e\+30"):
        TrajectoryMatching(**{**BRIEF, "expert_rate": 1e30})(pool, signals, keep=KEEP, seed=0, folder=tmp_path)


def test_strange_embeddings_are_refused_by_uid(given, tmp_path):
    pool, signals = given
    values = signals["clip.text_embedding"].read()
    values[3, 1] = np.nan
    broken = Panel({"clip": Signals(tmp_path / "signals", N)})
    broken.scorers["clip"].write_part(0, {"text_embedding": values}, {})
    with pytest.raises(ValueError, match=rf"text_embedding is NaN or infinite for 1 pairs, such as {pool.uids[3]}"):
        TrajectoryMatching(**BRIEF)(pool, broken, keep=KEEP, seed=0, folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "full"}, r"selector\.similarity='full'; choose from identity, lors"),
        ({"steps": 0}, r"selector\.steps=0 must be at least 1"),
        ({"mini_batch": 0}, r"selector\.mini_batch=0 must be at least 1"),
        ({"temperature": 0.0}, r"selector\.temperature=0\.0 must be above 0"),
        ({"momentum": -1}, r"selector\.momentum=-1: a share of the step before"),
        ({"momentum": 1.5}, r"selector\.momentum=1\.5: "),
        ({"rate_texts": "x"}, r"selector\.rate_texts='x' must be at least 0"),
        ({"alpha": float("nan")}, r"selector\.alpha=nan: "),
        ({"learn_text": "no"}, r"selector\.learn_text='no'; it is true or false"),
        ({"image_size": 4}, r"selector\.image_size=4 cannot be halved selector\.depth=3 times"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryMatching(**options)


def test_the_yaml_is_the_default():
    file = Path(__file__).parents[2] / "conf" / "selector" / "trajectory_matching.yaml"
    made = instantiate(OmegaConf.load(file))
    assert vars(made) == vars(TrajectoryMatching())
    assert made.needs == ("clip.text_embedding",)
