"""A pool of 300 pairs and the signals that a VQ-VLM would have for it: codes of 40 scenes, alignments good and bad."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tldr.pairs import Pairs, derive_uid
from tldr.signal.store import Signals

N, L, K, D = 300, 6, 24, 5


@pytest.fixture
def pool(tmp_path) -> Pairs:
    rng = np.random.default_rng(0)
    colours, shapes = ("red", "blue", "green"), ("disc", "star", "box")
    captions = [f"a {colours[i % 3]} {shapes[i // 3 % 3]} number {i}" for i in range(N)]
    images = [f"{i}.png" for i in range(N)]
    return Pairs.build(
        {
            "uid": [derive_uid(image, caption) for image, caption in zip(images, captions, strict=True)],
            "image": images,
            "caption": captions,
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
    return {
        "codes": codes.astype(np.uint16),
        "embedding": book()[codes].mean(1).astype(np.float16),
        "alignment": (np.where(pool.column("truth_mismatched"), -3, 5) + rng.standard_normal(N)).astype(np.float32),
        "tokens": rng.integers(5, 30, N).astype(np.uint16),
    }


def book() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((K, D)).astype(np.float32)


@pytest.fixture
def store(tmp_path) -> Callable[[dict[str, np.ndarray]], Signals]:
    """Puts signals on disk."""
    made: list[Path] = []

    def write(arrays: dict[str, np.ndarray]) -> Signals:
        made.append(tmp_path / f"signals-{len(made)}")
        signals = Signals(made[-1], len(arrays["codes"]))
        signals.write_constant("codebook", book())
        signals.write_part(0, arrays, {})
        return signals

    return write


@pytest.fixture
def signals(store, values) -> Signals:
    return store(values)


@pytest.fixture
def shuffled(pool) -> Pairs:
    """The same pairs, found in another order and cut elsewhere by Arrow."""
    order = np.random.default_rng(3).permutation(N)
    table = pool.table.take(pa.array(order))
    return Pairs.build(pa.concat_tables([table.slice(100), table.slice(0, 100)]), root=pool.root)
