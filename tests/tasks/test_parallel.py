"""Two processes learn what one learns from their batches put together. This file is also the script that they run."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import torch

from tldr.model.clip import Clip
from tldr.pairs import Pairs
from tldr.tasks.fit import fit

ROOT = Path(__file__).parents[2]


def train(pairs: Pairs, folder: Path, *, batch_size: int, **training) -> None:
    model = partial(
        Clip,
        image={"backbone": "test_vit", "image_size": 32},  # without BatchNorm, whose statistics are each process's own
        text={"width": 16, "depth": 1, "heads": 2, "max_length": 48},
        # So large an eps makes the step the gradient's size: else Adam blows rounding up to a whole step.
        optimizer={"lr": 1.0, "eps": 10.0, "schedule": "constant", "betas": [0.0, 0.0]},
    )
    trainer = partial(
        L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=1.0, **training,
    )  # fmt: skip
    fit(
        pairs, model=model, trainer=trainer, folder=folder, batch_size=batch_size, max_steps=14, checkpoint_every=6,
        augment="crop", seed=0, vocab_size=200,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]


def test_two_processes_learn_what_one_learns(tiny_pool, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    words = [sys.executable, __file__, str(tiny_pool.write(tmp_path / "pairs.arrow")), str(two)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    train(tiny_pool, one, batch_size=32)
    expected, found = weights(one), weights(two)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    L.seed_everything(0, verbose=False)
    moved = [(value - torch.zeros_like(value)).abs().max() for name, value in found.items() if "log_scale" in name]
    assert moved
    assert [path.name for path in two.iterdir()] == ["model.ckpt"]


if __name__ == "__main__":
    train(Pairs.open(sys.argv[1]), Path(sys.argv[2]), batch_size=16, devices=2, strategy="ddp")
