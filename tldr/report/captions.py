"""Captions while a model learns to write them, as tables in W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Subset

from tldr.check import check_number
from tldr.data.loading import PairsDataset, ordered_loader
from tldr.pairs import Pairs
from tldr.report.tracking import live_run


class Writer(Protocol):
    """A module that captions pictures."""

    def generate(self, images: Any, *, strategy: str) -> list[str]:
        """A caption for each of (B, 3, H, W) pictures."""
        ...


class CaptionTable(L.Callback):
    """Every ``every_n_steps`` optimiser steps (0: never), and at the end: a table of ``count`` pictures of the training
    pairs, always the same, with the original captions and those that the model now writes. Training goes on as if it
    had not happened: the random state and the modules' modes are put back."""

    def __init__(self, *, every_n_steps: int, count: int = 16, strategy: str = "greedy") -> None:
        meaning = "a whole number of steps between tables of captions, or 0 for none"
        check_number("caption_table_every", every_n_steps, meaning, low=0, whole=True)
        self.every_n_steps, self.count, self.strategy = every_n_steps, count, strategy
        self._logged = 0  # the step of the last table: with accumulated gradients, several batches share a step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log where it is time."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what it has learned."""
        if self.every_n_steps:
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        run = live_run(cast(Any, trainer.logger).experiment if trainer.logger is not None else None)
        if run is None or not hasattr(module, "generate") or trainer.global_step == self._logged:
            return
        if isinstance(module, FSDPModule):  # one process writes the table, and has a part of the weights
            return
        import wandb

        self._logged = trainer.global_step
        dataset: PairsDataset = trainer.datamodule.dataset  # pyright: ignore[reportAttributeAccessIssue]
        rows = np.unique(np.linspace(0, len(dataset) - 1, self.count).round().astype(int)).tolist()
        plain = PairsDataset.seen_by(dataset, dataset.pairs)  # without augmentation
        with isolate_rng():  # a loader draws a seed, too
            batch = next(iter(ordered_loader(Subset(plain, rows), batch_size=len(rows))))
            captions = self._generate(trainer, module, batch["images"].to(module.device))
        cells = zip(batch["images"], batch["captions"], captions, _uids(dataset.pairs, rows), strict=True)
        data = [[wandb.Image(image, file_type="jpg"), old, new, uid] for image, old, new, uid in cells]
        table = wandb.Table(columns=["picture", "original", "generated", "uid"], data=data)
        run.log({"captions": table, "trainer/global_step": trainer.global_step})

    def _generate(self, trainer: L.Trainer, module: L.LightningModule, images: Any) -> list[str]:
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            with trainer.precision_plugin.forward_context():
                return cast(Writer, module).generate(images, strategy=self.strategy)
        finally:
            for part, training in modes:  # not train(): a frozen part must stay in evaluation mode
                part.training = training


def _uids(pairs: Pairs, rows: Sequence[int]) -> list[str]:
    return [pairs.uids[row].as_py() for row in rows]
