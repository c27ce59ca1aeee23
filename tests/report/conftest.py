"""A small pool of pictures with planted noise, and decisions on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tldr.pairs import Pairs
from tldr.selector.base import Selection


@pytest.fixture
def make_pool(tmp_path: Path) -> Callable[..., Pairs]:
    """``count`` pictures of noise; ``columns`` replace or add to the usual ones."""

    def make(count: int = 40, *, size: int = 12, **columns: object) -> Pairs:
        rng = np.random.default_rng(0)
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        usual: dict[str, object] = {
            "uid": [f"pair-{i:04}" for i in range(count)],
            "image": [f"{i}.png" for i in range(count)],
            "caption": [f"picture {i}" + " of noise" * (i % 3) for i in range(count)],
        }
        return Pairs.build(usual | columns, root=folder, provenance={"data": "noise"})

    return make


@pytest.fixture
def pool(make_pool: Callable[..., Pairs]) -> Pairs:
    """40 pairs: every fourth has another's caption, the last ten repeat the first ten."""
    scenes = [*range(30), *range(10)]
    return make_pool(truth_mismatched=[i % 4 == 0 for i in range(40)], truth_scene=scenes, truth_rarity=[1.0] * 40)


@pytest.fixture
def decisions(pool: Pairs) -> pa.Table:
    """The ten best aligned are kept: rows 30 to 39 of four clusters of ten, in every of which some are kept."""
    score = np.arange(40, dtype=np.float32)
    reasons = [f"alignment {value:.0f}" for value in score]
    return Selection(np.arange(30, 40), reasons, {"cluster": np.arange(40) % 4, "alignment": score}).decisions(pool)
