"""On a pool with known parts it chooses the client's, by either proxy; the draw has the right probabilities."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tldr.ledger import Ledger, Meter
from tldr.pairs import Pairs
from tldr.selector import neural_data_server as module
from tldr.selector.base import Target
from tldr.selector.neural_data_server import NeuralDataServer, examples
from tldr.signal.experts import PairExperts, RotationExperts, _itc, rotations
from tldr.signal.panel import Panel
from tldr.signal.store import Signals

PARTS, EACH, E = 4, 60, 12


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def kinds(kind: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Embeddings of pairs of these kinds: each has its place, and its own way from picture to caption."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centres, ways = np.eye(E)[:PARTS], [np.linalg.qr(fixed.standard_normal((E, E)))[0] for _ in range(PARTS)]
    own = 0.15 * rng.standard_normal((len(kind), E))
    text = np.stack([x @ ways[k] for x, k in zip(own, kind, strict=True)])
    arrays = {"embedding": unit(centres[kind] + own), "text_embedding": unit(centres[kind] + text)}
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def pairs_of(count: int, folder, name: str = "p") -> Pairs:
    images = [f"{name}{i}.png" for i in range(count)]
    columns = {"uid": [f"{name}{i:04}" for i in range(count)], "image": images, "caption": ["x"] * count}
    return Pairs.build(columns, root=folder)


@pytest.fixture
def kind() -> np.ndarray:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(PARTS), EACH))


@pytest.fixture
def scored(store, kind, tmp_path):
    """The pool, its signals, and the signals of any client."""

    def signals(kind: np.ndarray, seed: int):
        return store({f"clip.{name}": array for name, array in kinds(kind, seed).items()})

    return pairs_of(len(kind), tmp_path), signals(kind, 2), signals


@pytest.mark.parametrize("client", range(PARTS))
def test_experts_on_pairs_find_the_clients_part(scored, kind, tmp_path, client):
    pool, signals, more = scored
    theirs = np.full(50, client)
    target = Target(pairs_of(50, tmp_path, "t"), more(theirs, 3))
    selector = NeuralDataServer(target="client", parts=PARTS, rows_per_part=EACH)
    found = selector(pool, signals, keep=40, seed=0, target=target)
    assert (kind[found.rows] == client).mean() > 0.9
    assert len(set(found.scores["cluster"])) == PARTS
    first = found.rows[0]
    weight = found.scores["weight"][first] * EACH
    loss = -found.scores["expert"][first]
    part = found.scores["cluster"][first]
    assert found.reasons[first] == f"part {part} of weight {weight:.2g} (mean loss {loss:.3g}), drawn"
    assert found.scores["expert"][first] == found.scores["expert"].max()


@pytest.mark.parametrize("client", [0, 1])
def test_experts_on_rotations_find_the_clients_part(tmp_path, store, client):
    """One kind of picture is light above, the other below: who has learned of one is wrong about the other."""
    rng = np.random.default_rng(0)

    def draw(pairs: Pairs, kind: np.ndarray) -> None:
        for name, k in zip(pairs.images.to_pylist(), kind, strict=True):
            ramp = np.linspace(-60, 60, 16)[:, None, None] * (1 if k else -1)
            pixels = 128 + ramp + rng.normal(0, 20, (16, 16, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / name)

    kind = rng.permutation(np.repeat([0, 1], 50))
    pool, theirs = pairs_of(100, tmp_path), pairs_of(20, tmp_path, "t")
    draw(pool, kind)
    draw(theirs, np.full(20, client))
    signals = store({"clip.embedding": kinds(kind, 2)["embedding"]})
    selector = NeuralDataServer(target="client", parts=2, rows_per_part=50, proxy="rotation", image_size=16, steps=25)
    found = selector(pool, signals, keep=30, seed=0, target=Target(theirs, None))
    assert (kind[found.rows] == client).mean() > 0.9
    own, other = (found.scores["expert"][kind == k].mean() for k in (client, 1 - client))
    assert own > 0.9
    assert other < 0.6
    assert f"(rotation accuracy {own:.3g}), drawn" in found.reasons[found.rows[0]]
    assert selector.needs == ("clip.embedding",)


def test_the_draw_has_the_probabilities_of_the_weights(scored, kind, monkeypatch):
    pool, signals, _ = scored
    selector = NeuralDataServer(target="client", parts=PARTS, rows_per_part=EACH, temperature=0.5)
    score = np.array([0.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(selector, "_divide", lambda *_: (kind, PARTS))
    monkeypatch.setattr(selector, "_learn_pairs", lambda *_: score)
    target: Any = "nobody looks"
    drawn = [kind[selector(pool, signals, keep=1, seed=seed, target=target).rows[0]] for seed in range(1000)]
    expected = np.exp(score / 4 / 0.5)
    np.testing.assert_allclose(np.bincount(drawn, minlength=PARTS) / 1000, expected / expected.sum(), atol=0.04)
    monkeypatch.setattr(selector, "_learn_pairs", lambda *_: np.ones(PARTS))
    assert np.allclose(selector(pool, signals, keep=9, seed=0, target=target).scores["weight"], 1 / len(pool))


def test_experts_are_found_again(scored, tmp_path, monkeypatch):
    pool, signals, more = scored
    trained, train = [], PairExperts.train

    def watch(*args, **options):
        trained.append(options["seed"])
        return train(*args, **options)

    monkeypatch.setattr(module.PairExperts, "train", watch)
    targets = [Target(pairs_of(20, tmp_path, "t"), more(np.full(20, client), 3)) for client in (0, 1)]
    selector = NeuralDataServer(target="client", parts=PARTS, rows_per_part=EACH, steps=20)
    ledger = Ledger()
    with ledger.stage("select") as making:
        first = selector(pool, signals, keep=40, seed=0, target=targets[0])
    with ledger.stage("select") as finding:
        again = selector(pool, signals, keep=40, seed=0, target=targets[0])
    assert trained == [0]
    assert making.flops == finding.found_flops > finding.flops == 0
    assert finding.found_seconds > 0
    assert np.array_equal(first.rows, again.rows)
    assert first.reasons == again.reasons
    other = selector(pool, signals, keep=20, seed=0, target=targets[1])  # another client, the same experts
    assert trained == [0]
    assert not np.allclose(other.scores["expert"], first.scores["expert"])
    selector(pool, signals, keep=20, seed=1, target=targets[0])
    assert trained == [0, 1]


def test_strange_embeddings_of_the_target_are_refused_by_its_uids(scored, tmp_path):
    pool, signals, more = scored
    theirs, embeddings = pairs_of(20, tmp_path, "t"), more(np.zeros(20, int), 3)
    values = embeddings["clip.text_embedding"].read()
    values[7, 0] = np.nan
    folder = tmp_path / "broken"
    Signals(folder, 20).write_part(0, {"embedding": embeddings["clip.embedding"].read(), "text_embedding": values}, {})
    broken = Target(theirs, Panel({"clip": Signals(folder, 20)}))
    selector = NeuralDataServer(target="client", parts=PARTS, rows_per_part=EACH, steps=2)
    with pytest.raises(ValueError, match=rf"text_embedding is NaN or infinite for 1 pairs, such as {theirs.uids[7]}"):
        selector(pool, signals, keep=40, seed=0, target=broken)


def test_rotation_experts_survive_the_disk():
    pictures = [torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8) for _ in range(2)]
    experts = RotationExperts.train(pictures, steps=3, batch_size=4, channels=4, seed=0, meter=Meter())
    again = RotationExperts.load(experts.state(), image_size=16, channels=4)
    assert np.array_equal(experts.scores(pictures[0]), again.scores(pictures[0]))
    turned, which = rotations(pictures[0])
    assert torch.equal(turned[which == 1], pictures[0].rot90(1, (2, 3)))
    assert which.bincount().tolist() == [8] * 4


def test_a_pair_is_no_negative_of_itself():
    """Of two pairs, one of them there five times, there is only ever one negative."""
    embedding = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.3, 1.0]]), dim=1)
    rows = torch.tensor([[0, 1, 1, 1, 1, 1]])
    loss = float(torch.log1p(torch.exp((embedding[0] @ embedding[1] - 1) / 0.07)))
    maps = torch.zeros(1, 2, 2, 2)

    values = embedding[rows]
    expected = (np.log(1 + 5 * np.exp(float(embedding[0] @ embedding[1] - 1) / 0.07)) + 5 * loss) / 6
    assert float(_itc(maps, values, values, rows)) == pytest.approx(expected, rel=1e-3)


def test_parts_are_lowered_and_it_says_so(pool, signals, target, capsys):
    found = NeuralDataServer(target="client", rows_per_part=100)(pool, signals, keep=75, seed=0, target=target)
    assert set(found.scores["cluster"]) == {0, 1, 2}
    assert "selector.parts=50 is lowered to 3: 100 pairs or more in each" in capsys.readouterr().out


def test_every_part_gives_as_many_examples():
    part = np.array([2, 0, 2, 0, 2, 1, 2, 2])
    rows = examples(part, 3, seed=0)
    assert rows.shape == (3, 5)
    for k in range(3):
        assert set(rows[k]) == set(np.flatnonzero(part == k))


def test_errors_name_the_key(pool):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"proxy": "colour"}, r"selector.proxy='colour'; choose from image_text, rotation"),
        ({"temperature": 0}, "selector.temperature=0"),
        ({"proxy": "rotation", "image_size": 3}, "image_size=3 is too small"),
        ({"image_size": 32.5}, r"selector\.image_size=32\.5 must be a whole number"),
        ({"parts": 0}, r"selector\.parts=0 must be at least 1"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            NeuralDataServer(**options)
    with pytest.raises(ValueError, match=r"needs a target set; give its data: \+data@selector.target="):
        NeuralDataServer().check(pool)
