"""A killed run resumes where it stopped: ``train.py ... resume=true``.

Every so many steps ``last.ckpt`` is written, completely or not at all, into the folder of the result. Lightning saves
weights, optimiser, scheduler, averaged weights, queues and codebooks in it, and `PairsData` the position in the data;
this module adds the states of the random generators and the run's configuration, so that another run's checkpoint is
refused. On the CPU a resumed run ends with the same bits as an uninterrupted one.

A run that is told to end, by SIGTERM or by SLURM, writes it after the step it is at; SLURM's job is then requeued.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tldr.nn.processes import connected

LAST = "last.ckpt"
# Options that may change when a run is resumed: they do not affect the weights (the pairs are known by their hash).
FREE = (
    "data", "pairs", "out", "cache", "logger", "names", "verify", "max_bad_fraction", "num_workers", "resume",
    "checkpoint_every", "caption_table_every", "export", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "trainer.enable_checkpointing", "trainer.log_every_n_steps", "trainer.max_time",
)  # fmt: skip
BEGINNINGS = ("init_from", "model.backbone", "tokenizer")  # options that name files


class RollingCheckpoint(Checkpoint):
    """Write ``folder/last.ckpt`` every ``every`` steps (0: never), replacing the previous one, and restore the random
    states from it. ``identity`` is what the run was asked for.

    Lightning's ModelCheckpoint saves no random states, writes through the machine's temporary folder, which may be on
    another disk (a kill then leaves half a file), and warns about a folder that is not empty."""

    def __init__(self, folder: Path, *, every: int, identity: Mapping[str, Any]) -> None:
        if every < 0:
            raise ValueError(f"checkpoint_every={every}; take a number of steps, or 0 for no checkpoints")
        self.file, self.every, self.identity = folder / LAST, every, dict(identity)
        self._saved = self._step = 0  # the steps of the last one and of the batch before: several batches may share one
        self._stops, self._whole = False, True  # is no gradient waiting for the rest of its step?
        self.asked = False  # by SLURM, to end
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run has the random states of its checkpoint. In a new run every process gets its own seed: if all
        of them blinded the same rows and masked the same words, a batch would vary less than its size suggests."""
        self._saved = self._step = trainer.global_step
        if self._restored is None and trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that all processes have the same pairs. Raises ValueError where they differ: a picture that one process
        alone could not read (a URL, a network disk) is missing from its pool."""
        if not connected():
            return
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, json.dumps(self.identity, default=str))
        for rank, other in enumerate(told):
            if other != told[0]:
                keys = _differing(json.loads(other), json.loads(told[0]))
                raise ValueError(
                    f"process {rank} and process 0 differ in {', '.join(keys)}: perhaps one could not read a picture "
                    "that the other could. Write the pairs once with select.py, and train on them: pairs=..."
                )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the random states: here, after all preparations, which draw from them too."""
        if self._restored is not None:
            set_random_state(self._restored)
            self._restored = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write when a checkpoint is due, and when training is about to stop early: once it has stopped, averaged
        weights have replaced those to resume from. It stops only after a whole step: gradients accumulated for the next
        one are in no checkpoint."""
        if SLURMEnvironment.detect():
            self.asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        self._stops |= trainer.should_stop or self.asked
        self._whole = trainer.global_step > self._step
        trainer.should_stop = self._stops and self._whole
        self._step = trainer.global_step
        if trainer.should_stop or (self.every and trainer.global_step % self.every == 0):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise where that was decided only here."""
        if trainer.should_stop:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write when SIGTERM ends the run, which Lightning tells all processes after the same batch."""
        if isinstance(exception, SIGTERMException) and self._whole:
            self._save(trainer)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile SIGUSR1, by which SLURM tells every process that the time is nearly up, ends the run after a step.
        Lightning's handler, which this one keeps out, saves at once: several processes are then rarely at one place."""
        if not SLURMEnvironment.detect():
            yield
            return
        before = signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "asked", True))
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)

    def _save(self, trainer: L.Trainer) -> None:
        if self._saved < trainer.global_step < trainer.max_steps:
            self._saved = trainer.global_step
            save_whole(trainer, self.file)

    def state_dict(self) -> dict[str, Any]:
        """The identity, and every process's random states."""
        state = random_state()
        states = [state]
        if connected():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, state)
        return {"identity": json.dumps(self.identity, default=str), "random": states}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run that ``max_time`` stopped may take that time again."""
        checkpoint["callbacks"].pop(Timer.__qualname__, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this process's random states until the first batch. Raises ValueError if they are from another run, as
        they may be where Lightning finds a checkpoint by itself."""
        check_identity(json.loads(state_dict["identity"]), self.identity, self.file)
        states = state_dict["random"]
        rank = dist.get_rank() if connected() else 0
        self._restored = states[min(rank, len(states) - 1)]


def requeued() -> bool:
    """Has SLURM begun this job anew, which then goes on with what is there?"""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def requeue() -> str:
    """Have SLURM begin this job anew; how that went."""
    job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:  # whose last task has the array's own number
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"job {job} could not be requeued ({error})"
    return f"job {job} is requeued"


def save_whole(trainer: L.Trainer, file: Path, *, weights_only: bool = False) -> None:
    """``trainer.save_checkpoint``, whole or not at all. Every process calls it, the first one writes."""
    temporary = file.with_name(f".{file.name}.tmp")
    trainer.save_checkpoint(temporary, weights_only=weights_only)  # all processes wait for each other in it
    if trainer.is_global_zero:
        temporary.replace(file)
    trainer.strategy.barrier("save_whole")


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's, torch's and every GPU's generator, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave."""
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda.cpu(), device)


def identity_of(config: Mapping[str, Any], pairs: str) -> dict[str, Any]:
    """What decides the weights of a run: its config, flat, without the options in `FREE`; the contents of the local
    files that the options in `BEGINNINGS` name; and the hash of its pairs."""
    decisive = {key: value for key, value in flat(config) if not any(f"{key}.".startswith(f"{free}.") for free in FREE)}
    held = {f"contents of {key}": contents_of(decisive.get(key)) for key in BEGINNINGS}
    return {**decisive, **{key: digest for key, digest in held.items() if digest}, "pairs": pairs}


def contents_of(sources: str | Path | Sequence[str | Path] | None) -> str | None:
    """16 hex digits for the contents of the files read from ``sources``, each a file or a folder, since what lies at a
    path may change. None where none of them is on this machine, such as a hub's ids."""
    several = [sources] if isinstance(sources, str | Path) else sources or ()
    digest, found = hashlib.blake2b(digest_size=8), False
    for path in map(Path, several):
        whole = path / "model.ckpt"
        files = [path] if path.is_file() else [whole] if whole.is_file() else [*path.glob("*"), *path.glob("*/*")]
        for file in sorted(file for file in files if file.is_file()):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "blake2b").digest())
            found = True
    return digest.hexdigest() if found else None


def check_identity(found: Mapping[str, Any], asked: Mapping[str, Any], file: Path) -> None:
    """Raises ValueError naming what differs between the run that ``file`` is of, and the one asked for."""
    found, asked = json.loads(json.dumps(found, default=str)), json.loads(json.dumps(asked, default=str))
    if differing := _differing(found, asked):
        told = "; ".join(f"{key} was {found.get(key)!r} and is now {asked.get(key)!r}" for key in differing)
        raise ValueError(f"{file} is of another run: {told}. Ask for the same, or for another folder: out=...")


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys, sorted, that two identities do not have alike."""
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]


def find_finished(folder: Path, identity: Mapping[str, Any]) -> Path | None:
    """The result, if the run has ended. Raises ValueError where it is another run's."""
    file, told = folder / "model.ckpt", folder / "provenance.json"
    if (folder / LAST).exists() or not (file.is_file() and told.is_file()):
        return None
    check_identity(json.loads(told.read_text(encoding="utf-8")).get("identity", {}), identity, file)
    return file


def find_last(folder: Path, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from, if there is one; says which. Raises ValueError where it is another run's."""
    file = folder / LAST
    if not file.exists():
        print(f"there is no {file} to resume from: starting from scratch")
        return None
    checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    state = checkpoint.get("callbacks", {}).get(RollingCheckpoint.__qualname__)
    if state is None:
        raise ValueError(f"{file} is not a checkpoint to go on from; remove it, or give another folder: out=...")
    check_identity(json.loads(state["identity"]), identity, file)
    print(f"resuming from {file}, after step {checkpoint['global_step']}")
    return file


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by their overrides: ``{"model": {"image": {"width": 96}}}`` gives ``("model.image.width", 96)``."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
