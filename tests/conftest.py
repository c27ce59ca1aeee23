"""What every test may count on: nothing is uploaded or downloaded; `test_data` is where real data lies, if anywhere."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tldr.model.captioner import Captioner
    from tldr.pairs import Pairs

os.environ["WANDB_MODE"] = "offline"  # before anything imports them
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data: ``$TLDR_TEST_DATA``, else ``../shared/data``. Users never need it."""
    folder = Path(os.environ.get("TLDR_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TLDR_TEST_DATA to its folder")
    return folder.resolve()


# Imports of the package stay inside: a test of a small thing should not wait for torch.


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """400 pairs of the embedded data with 32-pixel pictures, rendered once: 160 mismatched, 160 redundant."""
    from tldr.data.pool import read_pool
    from tldr.data.shapes import Shapes

    reader = Shapes(tmp_path_factory.mktemp("shapes"), size=400, image_size=32, seed=1)
    return read_pool(reader, progress=False).pairs


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_pool: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a VQ-VLM trained on `tiny_pool` until its codebook has begun. It knows next to nothing."""
    import lightning as L

    from tldr.model.captioner import Captioner
    from tldr.tasks.fit import fit

    folder = tmp_path_factory.mktemp("vqvlm")
    model = partial(
        Captioner,
        image={"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2},
        text={"width": 16, "depth": 1, "heads": 2, "max_length": 48},
        quantizer={"codebook_size": 16, "after": 4},
        optimizer={"lr": 3e-3},
    )
    trainer = partial(
        L.Trainer, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    fit(tiny_pool, model=model, trainer=trainer, folder=folder, max_steps=10, batch_size=32, seed=0, vocab_size=200)
    return folder


@pytest.fixture
def tiny_vqvlm(tiny_checkpoint: Path) -> Captioner:
    """The model of `tiny_checkpoint`, in evaluation mode; do with it what you like."""
    from tldr.model.base import load_model
    from tldr.model.captioner import Captioner

    model = load_model(tiny_checkpoint)
    assert isinstance(model, Captioner)
    return model
