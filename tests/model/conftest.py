"""What the tests of models share: an endless loader, a quiet trainer, small backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from tldr.model.base import Model
from tldr.model.blip import Blip
from tldr.model.captioner import Captioner
from tldr.model.clip import Clip
from tldr.model.vilt import Vilt

IMAGE = {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2}
TEXT = {"width": 16, "depth": 2, "heads": 2, "max_length": 14}


class Batches(Dataset):
    """``make(i)`` is the i-th batch of an epoch of ``epoch``."""

    def __init__(self, make: Callable[[int], Any], epoch: int) -> None:
        self.make, self.epoch = make, epoch

    def __len__(self) -> int:
        return self.epoch

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def train(
    model: Model,
    steps: int,
    make: Callable[[int], Any],
    *,
    epoch: int = 1000,
    resume: Path | None = None,
    **options: Any,
) -> L.Trainer:
    """Fit ``model`` to the batches; ``options`` are the trainer's."""
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(Batches(make, epoch), batch_size=None), ckpt_path=resume, weights_only=True)
    return trainer


def save(model: Model, folder: Path) -> Path:
    """Write ``folder/model.ckpt`` as Lightning does."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "model.ckpt", weights_only=True)
    return folder


def backbone(kind: str, tokenizer: str, **options: Any) -> Model:
    """A small one of each kind, always with the same weights."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"tokenizer": tokenizer, "image": IMAGE, "text": TEXT, "optimizer": {"lr": 1e-3}} | options
    if kind == "vilt":
        return Vilt(**{**common, "text": {**TEXT, "depth": 0}})
    if kind == "captioner":
        return Captioner(**common)
    if kind == "clip":
        return Clip(**common)
    return Blip(**common, embed_dim=8, queue_size=16)
