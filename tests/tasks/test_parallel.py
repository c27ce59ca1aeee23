"""Processes that learn together: what one learns from their batches put together, whether each holds all of the weights
(DDP) or a part of them (FSDP). This file is also the script that they run."""

import math
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.forked import run_forked
from tldr.model.base import load_model
from tldr.model.blip import Blip
from tldr.model.captioner import Captioner
from tldr.model.clip import Clip
from tldr.nn.shard import FullyShardedStrategy
from tldr.pairs import Pairs
from tldr.tasks.fit import fit

STRATEGIES = {
    "one": lambda: "auto",
    "ddp": partial(DDPStrategy, broadcast_buffers=False),  # as conf/trainer/ddp.yaml has it
    "fsdp": FullyShardedStrategy,
}
MODELS = {
    "clip": partial(Clip, embed_dim=8),
    "blip": partial(Blip, embed_dim=8, queue_size=64, momentum=0.9),
    "vqvlm": partial(Captioner, quantizer={"codebook_size": 16, "after": 8}, noise_rate=0.3),
}


class NearlyUp(L.Callback):
    """SLURM's signal, which reaches the second process early."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGUSR1)


class Dies(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 8:  # a checkpoint to go on from was written at 6
            os._exit(9)


def train(pairs: Pairs, folder: Path, model: str, strategy: str, then: str = "ends", **options) -> None:
    whole = partial(
        MODELS[model],
        # Without BatchNorm, whose statistics are each process's own.
        image={"backbone": "vit", "image_size": 32, "width": 16, "depth": 2, "heads": 2},
        text={"width": 16, "depth": 2, "heads": 2, "max_length": 48},
        # So large an eps makes the step the gradient's size: else Adam blows rounding up to a whole step.
        optimizer={"lr": 1.0, "eps": 10.0, "schedule": "constant", "betas": [0.0, 0.0]},
    )
    devices = 1 if strategy == "one" else 2
    trainer = partial(
        L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        devices=devices, strategy=STRATEGIES[strategy](),
    )  # fmt: skip
    fit(
        pairs, model=whole, trainer=trainer, folder=folder, batch_size=32 // devices, max_steps=14, checkpoint_every=6,
        augment="crop", seed=0, vocab_size=200, resume=then == "resumes",
        callbacks={"dies": [Dies()], "is requeued": [NearlyUp()]}.get(then, []), **options,
    )  # fmt: skip


def run(pairs: Pairs, folder: Path, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """`train` in two processes, which a launcher as torchrun has begun; how both have ended. (That Lightning begins the
    second, tests/tasks/test_commands.py shows.)"""
    folder.mkdir(exist_ok=True)
    script = [__file__, pairs.write(folder.with_suffix(".arrow")), folder, *words]
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def part(rank: int) -> subprocess.CompletedProcess[str]:
        slurm = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "PROCID": rank, "LOCALID": rank, "NODEID": 0, "JOB_ID": 17}
        slurm = {f"SLURM_{name}": str(value) for name, value in slurm.items()} | {"SLURM_JOB_NAME": "train"}
        own = slurm if words[-1] == "is requeued" else {"LOCAL_RANK": str(rank)}
        return run_forked(script, cwd=folder.parent, env={**shared, **own})

    with ThreadPoolExecutor(2) as both:
        return list(both.map(part, range(2)))


def learn(pairs: Pairs, folder: Path, *words: str) -> dict[str, torch.Tensor]:
    """The weights that two processes have learned in ``folder``."""
    for done in run(pairs, folder, *words):
        assert done.returncode == 0, done.stdout[-4000:]
    assert [path.name for path in folder.iterdir()] == ["model.ckpt"]
    return load_model(folder).state_dict()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(tiny_pool, tmp_path, strategy):
    train(tiny_pool, tmp_path / "one", model="clip", strategy="one")
    expected = load_model(tmp_path / "one").state_dict()
    found = learn(tiny_pool, tmp_path / "two", "clip", strategy)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert abs(float(found["log_scale"]) - math.log(1 / 0.07)) > 1e-3  # it began there


def test_averaged_weights_want_whole_ones(tiny_pool, tmp_path):
    with pytest.raises(ValueError, match=r"ema=0\.9 wants all weights in every process"):
        train(tiny_pool, tmp_path, model="clip", strategy="fsdp", ema=0.9)


def test_a_killed_run_with_divided_weights_goes_on(tiny_pool, tmp_path):
    train(tiny_pool, tmp_path / "one", model="clip", strategy="one")
    assert all(done.returncode for done in run(tiny_pool, tmp_path / "two", "clip", "fsdp", "dies"))
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["last.ckpt"]
    found = learn(tiny_pool, tmp_path / "two", "clip", "fsdp", "resumes")
    torch.testing.assert_close(found, load_model(tmp_path / "one").state_dict(), atol=1e-4, rtol=1e-4)


def test_all_processes_of_a_requeued_job_end_after_one_step(tiny_pool, tmp_path):
    """Whoever hears first that the time is nearly up."""
    train(tiny_pool, tmp_path / "one", model="clip", strategy="one")
    for done in run(tiny_pool, tmp_path / "two", "clip", "ddp", "is requeued"):
        assert done.returncode == 1, done.stdout[-4000:]
        assert "stopped after step 9 of 14" in done.stdout
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["last.ckpt"]
    found = learn(tiny_pool, tmp_path / "two", "clip", "ddp", "resumes")
    torch.testing.assert_close(found, load_model(tmp_path / "one").state_dict(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["blip", "vqvlm"])
def test_divided_weights_learn_what_whole_ones_do(tiny_pool, tmp_path, model):
    """BLIP's teacher and queue, the codebook: what is no weight of a layer."""
    expected = learn(tiny_pool, tmp_path / "ddp", model, "ddp")
    found = learn(tiny_pool, tmp_path / "fsdp", model, "fsdp")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if model == "blip":  # its teacher has moved, and is not the student
        name = "image.vit.blocks.0.mlp.fc1.weight"
        assert not torch.equal(found[f"teacher.{name}"], found[f"encoders.{name}"])
    else:
        assert found["quantizer.active"]
        assert 0 < abs(float(found["noise"]) - 0.3) < 0.1


if __name__ == "__main__":
    train(Pairs.open(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
