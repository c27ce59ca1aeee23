"""Train a model on pairs: what `train.py` does, and what `select.py` does when it needs a scorer that nobody has
trained."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import pyarrow as pa
from lightning.pytorch.callbacks import EMAWeightAveraging, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from tldr.check import check_number
from tldr.data.loading import PairsData
from tldr.data.tokenizer import Tokenizer
from tldr.ledger import Meter, Stage
from tldr.model.base import Model, load_model
from tldr.nn.shard import FullyShardedStrategy
from tldr.pairs import Pairs
from tldr.tasks.begin import Beginning
from tldr.tasks.resume import LAST, RollingCheckpoint, find_last, requeue, save_whole

BAR_EVERY = 10  # batches between looks at the loss
CORPUS = 2_000_000  # captions that a tokenizer and keywords are learned from
CACHED_PICTURES = 1 << 30  # bytes of decoded pictures that are kept in memory rather than decoded again every epoch
# Of Lightning's Trainer, what the task decides, and where that is asked for.
DECIDED = {
    "max_steps": "max_steps=", "max_epochs": "max_steps=", "logger": "logger=", "default_root_dir": "out=",
    "use_distributed_sampler": "nothing: each process has its part of every batch",
}  # fmt: skip

# Lightning's notes on which accelerators this machine lacks are not news to who started the run.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
# Lightning 2.6 on torch 2.12; gone when Lightning follows.
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)


class StepBar(ProgressBar):
    """One bar over the steps of the whole run, with rate and time left (Lightning's counts batches of an epoch)."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.quiet = False

    def disable(self) -> None:
        """Show nothing: what Lightning asks of all processes but the first."""
        self.quiet = True

    def enable(self) -> None:
        """Show it again."""
        self.quiet = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open it, at the step where a resumed run is."""
        name = f"training {type(pl_module).__name__}"
        begun = trainer.global_step
        self.bar = tqdm(total=trainer.max_steps, initial=begun, desc=name, unit="step", disable=self.quiet)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it to the optimiser's step."""
        if self.bar is None or self.bar.disable:
            return
        if batch_idx % BAR_EVERY == 0:  # a look at a number makes a GPU wait
            self.bar.set_postfix(loss=f"{float(trainer.callback_metrics['loss']):.3f}", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close it, also when training failed."""
        if self.bar is not None:
            self.bar.close()


class StepMeter(L.Callback):
    """Counts the FLOPs of the first few training batches, forward and backward. In a resumed run, ``found`` is the step
    that the killed run had reached, and ``found_seconds`` the time it had taken.

    With ``compile`` the networks are compiled only after that: torch.compile gives up, for the whole run, on code that
    it first meets under the counter."""

    def __init__(self, *, compile: bool = False) -> None:
        self.meter, self.compile = Meter(), compile
        self.found, self.found_seconds = 0, 0.0
        self._open, self._begun, self._step = ExitStack(), time.perf_counter(), 0

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on from here has found."""
        return {"step": self._step, "seconds": self.found_seconds + time.perf_counter() - self._begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it."""
        self.found, self.found_seconds = state_dict["step"], state_dict["seconds"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to count, or to run compiled."""
        if self.meter.counting:
            self._open.enter_context(self.meter.batch(len(batch["captions"])))
        elif self.compile:
            self.compile = False
            cast(Model, pl_module).compile_networks()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count no more."""
        self._open.close()
        self._step = trainer.global_step

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no counter behind."""
        self._open.close()


def fit(
    pairs: Pairs,
    *,
    model: Callable[..., Model],
    trainer: Callable[..., L.Trainer],
    folder: Path,
    max_steps: int,
    batch_size: int,
    seed: int,
    augment: str = "none",
    balance: float = 0.0,
    num_workers: int = 0,
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    image_size: int | None = None,
    init_from: str | Path | Sequence[str | Path] | None = None,
    ema: float | None = None,
    compile: bool = False,
    resume: bool = False,
    checkpoint_every: int = 0,
    identity: Mapping[str, Any] | None = None,
    logger: Logger | None = None,
    callbacks: Sequence[L.Callback] = (),
    stage: Stage | None = None,
) -> tuple[Model, Path]:
    """Train for ``max_steps`` optimiser steps, whatever the number of pairs; write ``folder/model.ckpt``.

    With ``balance=1``, all pairs that share a caption are together drawn as often as one pair with a unique caption,
    so that repeated captions are not memorised; 0 draws all pairs equally often, values between interpolate.

    ``model`` builds the module from a tokenizer, ``trainer`` the Trainer from steps, logger and callbacks.
    ``tokenizer`` names a published one; without it one of at most ``vocab_size`` pieces is learned from the captions.
    ``init_from`` names checkpoints, ours or Hugging Face's, to begin from: what they fix of the architecture, and their
    tokenizer, stand in for what ``model`` has. ``ema`` is the decay of averaged weights, which are then the result.

    Every ``checkpoint_every`` steps (0: never) ``folder/last.ckpt`` is written, from which ``resume`` goes on if that
    run had the same ``identity``; without one it starts from scratch. Raises ValueError naming what differs.
    Whatever ends it early, such as the Trainer's ``max_time`` or SIGTERM, leaves ``last.ckpt`` and no ``model.ckpt``,
    and raises SystemExit. SLURM's SIGUSR1 does, too, and has the job requeued.

    ``stage`` is the ledger's entry for the run: its pictures, and its FLOPs, extrapolated from a few counted batches.
    What a resumed run had spent before it was killed is entered as ``found_seconds`` and ``found_flops``.
    """
    for key, number in (("max_steps", max_steps), ("batch_size", batch_size)):
        check_number(key, number, f"a whole number from 1 (of a scorer: training.{key})", low=1, whole=True)
    given: Mapping[str, Any] = getattr(trainer, "keywords", {})
    if taken := sorted(DECIDED.keys() & given):
        raise ValueError(f"trainer.{taken[0]}={given[taken[0]]}: the task decides it; set {DECIDED[taken[0]]}")
    precision = str(given.get("precision"))
    if precision in ("16-true", "bf16-true"):
        raise ValueError(
            f"trainer.precision={precision}: 16-bit weights are too coarse for the small updates of averages, teachers "
            "and codebooks; take trainer.precision=bf16-mixed"
        )
    identity = {} if identity is None else identity
    last = find_last(folder, identity) if resume else None
    L.seed_everything(seed, workers=True, verbose=False)
    sample = np.linspace(0, len(pairs) - 1, min(len(pairs), CORPUS)).astype(np.int64)
    captions = pairs.captions.take(pa.array(sample)).to_pylist()
    beginning = Beginning(model, init_from, image_size=image_size)
    beginning.tell()
    text = beginning.tokenizer
    if text is None and beginning.learns_tokenizer:
        tokens = Tokenizer.pretrained(tokenizer) if tokenizer else Tokenizer.learn(captions, vocab_size=vocab_size)
        text = tokens.json
    module = beginning.build(text)
    module.prepare(captions)
    size = module.image_size
    data = PairsData(
        pairs,
        image_size=size,
        resize_mode=module.resize_mode,
        batch_size=batch_size,
        augment=augment,
        cache=augment == "none" and num_workers == 0 and len(pairs) * 3 * size * size <= CACHED_PICTURES,
        num_workers=num_workers,
        seed=seed,
        balance=balance,
        columns=module.columns,
    )
    module.prepare_table(pairs.table)
    module.prepare_rows(len(pairs))
    callbacks = [*(given.get("callbacks") or ()), *callbacks]
    if given.get("enable_progress_bar", True):
        callbacks = [*callbacks, StepBar()]
    counter = StepMeter(compile=compile)
    rolling = RollingCheckpoint(folder, every=checkpoint_every, identity=identity)
    run = trainer(
        max_steps=max_steps,
        logger=logger or False,
        callbacks=[*callbacks, counter, rolling],
        enable_checkpointing=True,  # by our callback; Lightning's own is then not added
        log_every_n_steps=given.get("log_every_n_steps") or max(1, min(10, max_steps, len(pairs) // batch_size)),
        use_distributed_sampler=False,  # the batches divide themselves
        default_root_dir=folder,  # Lightning begins from any hpc_ckpt_*.ckpt that it finds there
    )
    if ema is not None:
        if not 0 < ema < 1:
            raise ValueError(f"ema={ema}; take a decay such as 0.999, or null for none")
        if isinstance(run.strategy, FullyShardedStrategy):
            raise ValueError(f"ema={ema} wants all weights in every process, but fsdp shards them: set ema=null")
        # Buffers are not averaged: a queue's, a codebook's and BatchNorm's numbers mean nothing half-way.
        averaging = EMAWeightAveraging(device=run.strategy.root_device, use_buffers=False, decay=ema)
        run.callbacks.insert(0, averaging)  # pyright: ignore[reportAttributeAccessIssue]
    if last is None and run.is_global_zero and (folder / LAST).exists():
        print(
            f"{folder / LAST} is from an unfinished run, which resume=true would continue; this run starts from "
            "scratch and will overwrite that file"
        )
    with warnings.catch_warnings(), rolling.listening():
        # Of a model that is configured once more for the average: ours changes only where weights are divided.
        warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model that overrides")
        try:
            run.fit(module, data, ckpt_path=last, weights_only=True)
        except SIGTERMException as error:  # it would end the program as if all had been done
            raise SystemExit(128 + signal.SIGTERM) from error
    if run.global_step < max_steps:  # trainer.max_time, SLURM, or a callback of the user's
        again = f"{requeue()}; " if rolling.asked and run.is_global_zero else ""
        raise SystemExit(
            f"stopped after step {run.global_step} of {max_steps}, without a model.ckpt; {again}the same command goes "
            f"on from {folder / LAST} (train.py with resume=true)"
        )
    file = folder / "model.ckpt"
    save_whole(run, file, weights_only=True)
    if run.is_global_zero:
        for left in (folder / LAST, *folder.glob("hpc_ckpt_*.ckpt")):  # the latter where Lightning requeues by itself
            left.unlink(missing_ok=True)
    if stage is not None:
        stage.images = max_steps * batch_size * run.accumulate_grad_batches * run.world_size
        stage.found_seconds = round(counter.found_seconds, 3)
        stage.found_flops = stage.images * counter.meter.per_row * counter.found / max_steps
        stage.flops = stage.images * counter.meter.per_row - stage.found_flops
        stage.devices = run.world_size if run.strategy.root_device.type != "cpu" else 0
    if isinstance(module, FSDPModule):  # each process has a part of it
        run.strategy.barrier()  # until the first has written
        return load_model(file), file
    return module.eval(), file
