"""A pool of 300 pairs and the signals that a VQ-VLM, a CLIP, a BLIP and a classifier would have for it: 40 scenes,
alignments good and bad. A target of 60 pairs shows ten of the scenes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tldr.pairs import Pairs, derive_uid
from tldr.selector.base import Target
from tldr.signal.panel import Panel, scorers_of
from tldr.signal.store import Signals

N, L, K, D, E = 300, 6, 24, 5, 16
SHAPES = ("disc", "star", "box")


@pytest.fixture
def pool(tmp_path) -> Pairs:
    rng = np.random.default_rng(0)
    colours = ("red", "blue", "green")
    captions = [f"a {colours[i % 3]} {SHAPES[i // 3 % 3]} number {i}" for i in range(N)]
    images = [f"{i}.png" for i in range(N)]
    return Pairs.build(
        {
            "uid": [derive_uid(image, caption) for image, caption in zip(images, captions, strict=True)],
            "image": images,
            "caption": captions,
            "label": [SHAPES[i // 3 % 3] for i in range(N)],
            "truth_mismatched": rng.random(N) < 0.4,
        },
        root=tmp_path,
    )


@pytest.fixture
def values(pool) -> dict[str, np.ndarray]:
    """The signals by name, in the order of the pool."""
    rng = np.random.default_rng(1)
    scenes, label = rng.integers(0, K, (40, L)), rng.integers(40, size=N)
    codes = scenes[label]
    codes[np.arange(N), rng.integers(L, size=N)] = rng.integers(0, K, N)
    wrong = pool.column("truth_mismatched")
    image = unit(directions()[label] + 0.1 * rng.standard_normal((N, E)))
    text = unit(image[np.where(wrong, rng.permutation(N), np.arange(N))] + 0.2 * rng.standard_normal((N, E)))
    return {
        "clip.embedding": image.astype(np.float16),
        "clip.text_embedding": text.astype(np.float16),
        "clip.alignment": (image * text).sum(1).astype(np.float32),
        "blip.alignment": (np.where(wrong, -2, 3) + rng.standard_normal(N)).astype(np.float32),
        **{f"classifier.{name}": rng.random(N).astype(np.float32) for name in ("el2n", "grand", "forgetting")},
        "codes": codes.astype(np.uint16),
        "embedding": book()[codes].mean(1).astype(np.float16),
        "alignment": (np.where(wrong, -3, 5) + rng.standard_normal(N)).astype(np.float32),
        "tokens": rng.integers(5, 30, N).astype(np.uint16),
    }


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def directions() -> np.ndarray:
    """(40, E): the embedding of every scene, but for noise."""
    return unit(np.random.default_rng(4).standard_normal((40, E)))


def book() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((K, D)).astype(np.float32)


@pytest.fixture
def store(tmp_path) -> Callable[[dict[str, np.ndarray]], Panel]:
    """Puts signals on disk."""
    made: list[Path] = []

    def write(arrays: dict[str, np.ndarray]) -> Panel:
        made.append(tmp_path / f"signals-{len(made)}")
        panel = {}
        for scorer in scorers_of(["codes", *arrays]):
            own = {name.rpartition(".")[2]: v for name, v in arrays.items() if name.rpartition(".")[0] == scorer}
            panel[scorer] = Signals(made[-1] / (scorer or "main"), len(next(iter(arrays.values()))))
            panel[scorer].write_part(0, own, {})
        panel[""].write_constant("codebook", book())
        return Panel(panel)

    return write


@pytest.fixture
def target(store, tmp_path) -> Target:
    """60 pairs of the first ten scenes."""
    rng = np.random.default_rng(5)
    images, captions = [f"t{i}.png" for i in range(60)], [f"a red disc {i}" for i in range(60)]
    uids = [derive_uid(image, caption) for image, caption in zip(images, captions, strict=True)]
    pairs = Pairs.build({"uid": uids, "image": images, "caption": captions}, root=tmp_path)
    image, text = (unit(directions()[np.arange(60) % 10] + 0.1 * rng.standard_normal((60, E))) for _ in range(2))
    arrays = {"clip.embedding": image, "clip.text_embedding": text, "clip.alignment": (image * text).sum(1)}
    return Target(pairs, store({name: array.astype(np.float16) for name, array in arrays.items()}))


@pytest.fixture
def signals(store, values) -> Signals:
    return store(values)


@pytest.fixture
def shuffled(pool) -> Pairs:
    """The same pairs, found in another order and cut elsewhere by Arrow."""
    order = np.random.default_rng(3).permutation(N)
    table = pool.table.take(pa.array(order))
    return Pairs.build(pa.concat_tables([table.slice(100), table.slice(0, 100)]), root=pool.root)
