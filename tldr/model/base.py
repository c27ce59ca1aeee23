"""What every model shares: a LightningModule whose losses are summed, its optimiser, and checkpoints that describe
themselves.

A checkpoint names its class and holds the arguments it was built with, so that `load_model` needs nothing else.
Loading runs no pickled code (``weights_only``)."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from tldr.data.loading import Batch

_CLASS_KEY = "tldr_class"


class Model(L.LightningModule, ABC):
    """A model that learns from batches of pairs. A subclass calls `save_hyperparameters` first, then defines `losses`.

    ``optimizer``: lr, weight_decay, betas, warmup_steps, schedule (``cosine`` to ``min_lr`` over the run, or
    ``constant``)."""

    image_size: int

    def __init__(self, *, optimizer: Mapping[str, Any]) -> None:
        super().__init__()
        self.optimizer_arguments = dict(optimizer)

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The named losses of a batch; their sum is minimised. Names as in the papers: itc, itm, lm, commitment."""

    def prepare(self, captions: Sequence[str]) -> None:
        """Learn from the corpus before training begins, where a model does so (a codebook from keywords)."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum the losses and log each."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log("loss", total.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
        return total

    def constants(self) -> dict[str, Tensor]:
        """Arrays that belong to the model and that selectors may ask for: a codebook."""
        return {}

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate changes every step."""
        return adamw(self, total_steps=int(self.trainer.estimated_stepping_batches), **self.optimizer_arguments)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, for `load_model`."""
        checkpoint[_CLASS_KEY] = f"{type(self).__module__}.{type(self).__qualname__}"


def adamw(
    module: nn.Module,
    *,
    total_steps: int,
    lr: float,
    weight_decay: float = 0.05,
    betas: Sequence[float] = (0.9, 0.98),
    warmup_steps: int = 0,
    min_lr: float = 0.0,
    schedule: str = "cosine",
) -> dict[str, Any]:
    """AdamW without weight decay on norms, biases and other vectors; linear warm-up, then ``schedule``."""
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"optimizer.schedule={schedule!r}; choose from cosine, constant")
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return min_lr / lr + (1 - min_lr / lr) * (1 + math.cos(math.pi * done)) / 2

    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def load_model(path: str | Path) -> Model:
    """The model of a checkpoint, in evaluation mode on the CPU. Raises ValueError where it is not one of ours."""
    file = Path(path)
    if file.is_dir():
        file = file / "model.ckpt"
    if not file.is_file():
        raise ValueError(f"no checkpoint at {file}; `python train.py ... out={file.parent}` writes one")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes fail the unpickler in any way
        raise ValueError(f"{file} is not a checkpoint of tldr's (loading runs no pickled code)") from error
    name = checkpoint.get(_CLASS_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(name, str) or not name.startswith("tldr.model."):
        raise ValueError(f"{file} is not a checkpoint of tldr's (it names no class of tldr.model)")
    module, _, attribute = name.rpartition(".")
    arguments = dict(checkpoint["hyper_parameters"])
    if "image" in arguments:  # the weights are in the checkpoint: no download
        arguments["image"] = {**arguments["image"], "pretrained": False}
    model = getattr(importlib.import_module(module), attribute)(**arguments)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()
