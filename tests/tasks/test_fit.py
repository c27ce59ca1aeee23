import os
import signal
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from tldr.data.loading import transform
from tldr.model import captioner
from tldr.model.blip import Blip
from tldr.model.classifier import Classifier
from tldr.model.clip import Clip
from tldr.pairs import Pairs
from tldr.tasks.fit import fit
from tldr.tasks.resume import RollingCheckpoint

VIT = {"backbone": "vit", "image_size": 32, "patch_size": 16, "width": 16, "depth": 1, "heads": 2}
TEXT = {"width": 16, "depth": 1, "heads": 2, "max_length": 48}
TOWERS = {"image": VIT, "text": TEXT, "optimizer": {"lr": 1e-2, "schedule": "constant"}}
CLIP = partial(Clip, **TOWERS)
CPU = partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)


def train(pairs, folder: Path, model: Any = CLIP, **options) -> dict[str, torch.Tensor]:
    usual = {"trainer": CPU, "batch_size": 32, "seed": 0, "vocab_size": 200}
    fit(pairs, model=model, folder=folder, **{**usual, **options})
    return torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]


def test_the_result_is_the_average(tiny_pool, tmp_path):
    one, two, three = (train(tiny_pool, tmp_path, max_steps=steps) for steps in (1, 2, 3))
    found = train(tiny_pool, tmp_path, max_steps=3, ema=0.75)
    for name in one:
        if one[name].is_floating_point():
            expected = 0.75 * (0.75 * one[name] + 0.25 * two[name]) + 0.25 * three[name]
            torch.testing.assert_close(found[name], expected, msg=name)
    with pytest.raises(ValueError, match=r"ema=1\.5; take a decay"):
        train(tiny_pool, tmp_path, max_steps=1, ema=1.5)


def test_buffers_are_those_of_the_last_step(tiny_pool, tmp_path):
    """Half of a queue's picture numbers are no picture numbers."""
    model = partial(Blip, **TOWERS, embed_dim=16, queue_size=64)
    plain, averaged = (train(tiny_pool, tmp_path, model, max_steps=3, ema=ema) for ema in (None, 0.75))
    assert torch.equal(averaged["queue.added"], plain["queue.added"])
    assert torch.equal(averaged["queue.ids"], plain["queue.ids"])


def test_training_sees_pictures_as_the_model_does(tmp_path):
    Image.fromarray(np.arange(64 * 32 * 3, dtype=np.uint8).reshape(32, 64, 3)).save(tmp_path / "a.png")
    rows = [str(row) for row in range(32)]
    pairs = Pairs.build({"uid": rows, "image": ["a.png"] * 32, "caption": rows}, root=tmp_path)
    seen = []

    class Watching(Clip):
        def losses(self, batch):
            seen.append(batch["images"])
            return super().losses(batch)

    for resize_mode in ("squash", "shortest"):
        image = VIT | {"resize_mode": resize_mode}
        train(pairs, tmp_path, partial(Watching, **{**TOWERS, "image": image}), max_steps=1)
        expected = transform(32, resize_mode=resize_mode)(Image.open(tmp_path / "a.png"))
        assert torch.equal(seen.pop(), expected.expand(32, -1, -1, -1))
    assert not seen


def test_a_column_that_the_losses_need_is_asked_for(tiny_pool, tmp_path):
    class Asking(Clip):
        columns = ("label",)

    with pytest.raises(ValueError, match=r"these pairs have no column label; they have uid"):
        train(tiny_pool, tmp_path, partial(Asking, **TOWERS), max_steps=1)


@pytest.mark.parametrize("given", [{"max_steps": 0}, {"max_steps": 1.5}, {"max_steps": "a"}, {"batch_size": 0}])
def test_steps_and_batches_are_whole_numbers(tiny_pool, tmp_path, given):
    ((key, value),) = given.items()
    told = rf"{key}={value!r} must be a whole number from 1 \(of a scorer: training.{key}\)"
    with pytest.raises(ValueError, match=told):
        train(tiny_pool, tmp_path, **{"max_steps": 1, **given})


class Stop(L.Callback):
    """What `trainer.max_time` does when the time is over."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        trainer.should_stop = trainer.global_step >= 5


class StopBetween(L.Callback):
    """Likewise, once, when of the two batches of a step only the first has been seen."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = batch_idx == 6


class StopAtEpoch(L.Callback):
    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(("stop", "step"), [(Stop, 5), (StopAtEpoch, 12)])
def test_what_ends_early_has_not_ended(stop, step, ema, tiny_pool, tmp_path):
    """It leaves what it can go on from, and then ends as if nothing had been."""
    whole = train(tiny_pool, tmp_path / "whole", max_steps=14, ema=ema)
    with pytest.raises(SystemExit, match=rf"stopped after step {step} of 14, without a model\.ckpt; .*last\.ckpt"):
        train(tiny_pool, tmp_path / "out", max_steps=14, ema=ema, trainer=partial(CPU, callbacks=[stop()]))
    assert [file.name for file in (tmp_path / "out").glob("*.ckpt")] == ["last.ckpt"]
    found = train(tiny_pool, tmp_path / "out", max_steps=14, ema=ema, resume=True)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert [file.name for file in (tmp_path / "out").glob("*.ckpt")] == ["model.ckpt"]


def test_what_ends_between_two_batches_of_a_step_makes_the_step(tiny_pool, tmp_path):
    """Accumulated gradients are in no checkpoint."""
    two = partial(CPU, accumulate_grad_batches=2)
    whole = train(tiny_pool, tmp_path / "whole", max_steps=6, trainer=two)
    with pytest.raises(SystemExit, match=r"stopped after step 4 of 6, without a model\.ckpt; .*last\.ckpt"):
        train(tiny_pool, tmp_path / "out", max_steps=6, trainer=partial(two, callbacks=[StopBetween()]))
    found = train(tiny_pool, tmp_path / "out", max_steps=6, trainer=two, resume=True)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_early_weights_are_kept_by_a_run_that_goes_on_from_their_step(tiny_pool, tmp_path):
    labels = [["red", "blue"][row % 2] for row in range(len(tiny_pool))]
    pairs = Pairs.build(tiny_pool.table.append_column("label", [labels]), root=tiny_pool.root)
    image = {"backbone": "convnet", "image_size": 16, "channels": 4, "patch_size": 2}
    model = partial(Classifier, image=image, optimizer={"lr": 1e-2}, early_steps=5)
    with pytest.raises(SystemExit):
        train(pairs, tmp_path, model, max_steps=7, trainer=partial(CPU, callbacks=[Stop()]))
    assert train(pairs, tmp_path, model, max_steps=7, resume=True)["early_step"] == 5


def test_what_is_compiled_runs_so(tiny_pool, tmp_path, monkeypatch):
    """The counter of FLOPs, under which torch.compile gives up, is then gone."""
    monkeypatch.setattr(Clip, "compile_networks", partialmethod(Clip.compile_networks, backend="eager"))
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    plain = train(tiny_pool, tmp_path, max_steps=5)
    assert not counters["unique_graphs"]
    compiled = train(tiny_pool, tmp_path, max_steps=5, compile=True)
    assert counters["unique_graphs"]
    assert list(compiled) == list(plain)
    torch.testing.assert_close(compiled, plain)


def test_weights_of_16_bits_are_refused(tiny_pool, tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.precision=bf16-true: .* take trainer\.precision=bf16-mixed"):
        train(tiny_pool, tmp_path, max_steps=1, trainer=partial(CPU, precision="bf16-true"))


def test_what_is_measured_now_and_then_is_logged_at_its_step(tiny_pool, tmp_path, monkeypatch):
    """Once, however often Lightning logs, and however many batches make a step."""
    monkeypatch.setattr(captioner, "LOG_EVERY", 4)
    logger, trainer = CSVLogger(tmp_path), partial(CPU, accumulate_grad_batches=2, log_every_n_steps=3)
    train(tiny_pool, tmp_path, partial(captioner.Captioner, **TOWERS, noise_rate=0.3), max_steps=10, trainer=trainer,
          logger=logger)  # fmt: skip
    rows = pl.read_csv(Path(logger.log_dir) / "metrics.csv")
    assert rows.filter(pl.col("loss").is_not_null())["step"].to_list() == [2, 5, 8]
    for name in ("train/lm_image", "train/noise_rate"):
        assert rows.filter(pl.col(name).is_not_null())["step"].to_list() == [0, 4, 8]


class Signalled(L.Callback):
    """What a cluster's scheduler does to a job, after a batch of the epoch."""

    def __init__(self, number: int, after: int) -> None:
        self.number, self.after = number, after

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.after:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("job", "number", "fails"),
    [({}, "17", False), ({"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}, "9_2", True)],
)
def test_a_slurm_job_is_requeued_and_goes_on(job, number, fails, tiny_pool, tmp_path, monkeypatch):
    two, nearly_up = partial(CPU, accumulate_grad_batches=2), Signalled(signal.SIGUSR1, after=6)  # amid a step
    whole = train(tiny_pool, tmp_path / "whole", max_steps=8, trainer=two)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\nexit {int(fails)}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "17", **job}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGUSR1)
    done = rf"job {number} could not be requeued \(.*exit status 1" if fails else rf"job {number} is requeued"
    with pytest.raises(
        SystemExit, match=rf"after step 4 of 8, .*; {done}.*; the same command goes on from .*last\.ckpt"
    ):
        train(tiny_pool, tmp_path / "out", max_steps=8, trainer=partial(two, callbacks=[nearly_up]))
    assert (tmp_path / "asked").read_text() == f"requeue {number}\n"
    assert signal.getsignal(signal.SIGUSR1) == before
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["last.ckpt"]
    found = train(tiny_pool, tmp_path / "out", max_steps=8, trainer=two, resume=True)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    (tmp_path / "asked").unlink()
    train(tiny_pool, tmp_path / "last", max_steps=4, trainer=partial(two, callbacks=[nearly_up]))  # it has ended
    assert not (tmp_path / "asked").exists()


def test_what_lightning_requeues_by_itself_goes_on_in_its_own_folder(tiny_pool, tmp_path, monkeypatch):
    """It leaves hpc_ckpt_1.ckpt and begins from it, which another run must not."""
    monkeypatch.chdir(tmp_path)
    whole = train(tiny_pool, tmp_path / "whole", max_steps=14)
    with pytest.raises(SystemExit, match=r"after step 5 of 14"):
        train(tiny_pool, tmp_path / "out", max_steps=14, trainer=partial(CPU, callbacks=[Stop()]))
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "out" / "last.ckpt").rename(tmp_path / "out" / "hpc_ckpt_1.ckpt")
    with pytest.raises(ValueError, match=r"is of another run: rate was None and is now 1"):
        train(tiny_pool, tmp_path / "out", max_steps=14, identity={"rate": 1})
    found = train(tiny_pool, tmp_path / "out", max_steps=14)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert [file.name for file in (tmp_path / "out").glob("*.ckpt")] == ["model.ckpt"]


def test_the_trainer_is_the_users_but_for_what_the_task_decides(tiny_pool, tmp_path):
    seen = []

    class Watching(L.Callback):
        def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
            seen.append((trainer.log_every_n_steps, Path(trainer.default_root_dir)))

    train(tiny_pool, tmp_path, max_steps=1, trainer=partial(CPU, callbacks=[Watching()], log_every_n_steps=7))
    train(tiny_pool, tmp_path, max_steps=1, trainer=partial(CPU, callbacks=[Watching()]))
    assert seen == [(7, tmp_path), (1, tmp_path)]
    for key, told in {"max_epochs": "max_steps=", "default_root_dir": "out=", "logger": "logger="}.items():
        with pytest.raises(ValueError, match=rf"trainer\.{key}=3: the task decides it; set {told}"):
            train(tiny_pool, tmp_path, max_steps=1, trainer=partial(CPU, **{key: 3}))


def test_a_run_that_ran_out_of_time_has_it_again(tmp_path):
    checkpoint = {"callbacks": {"Timer": {"time_elapsed": {"train": 3600}}, "Other": {}}}
    module: Any = None
    RollingCheckpoint(tmp_path, every=1, identity={}).on_load_checkpoint(module, module, checkpoint)
    assert checkpoint == {"callbacks": {"Other": {}}}
    assert Timer(duration={"hours": 1}).state_key == "Timer"


@pytest.mark.parametrize(("together", "step"), [(1, 6), (2, 3), (4, None)])
def test_what_was_terminated_has_not_succeeded_and_goes_on(together, step, tiny_pool, tmp_path, capsys):
    """Unless gradients were waiting for the rest of their step, which no checkpoint holds."""
    trainer = partial(CPU, accumulate_grad_batches=together)
    whole = train(tiny_pool, tmp_path / "whole", max_steps=9, trainer=trainer)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # another test's library may have left its own
    try:
        with pytest.raises(SystemExit) as stopped:
            train(
                tiny_pool,
                tmp_path / "out",
                max_steps=9,
                trainer=trainer,
                callbacks=[Signalled(signal.SIGTERM, after=5)],
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    assert [file.name for file in (tmp_path / "out").glob("*")] == (["last.ckpt"] if step else [])
    found = train(tiny_pool, tmp_path / "out", max_steps=9, trainer=trainer, resume=True)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert (f", after step {step}" if step else "starting from scratch") in capsys.readouterr().out


def test_every_step_has_as_many_batches(tiny_pool, tmp_path):
    """Lightning steps at the end of an epoch, here of twelve batches, however few there are left."""
    seen: list[tuple[int, int]] = []

    class Watching(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            seen.append((trainer.current_epoch, trainer.global_step))

    five = partial(CPU, accumulate_grad_batches=5, callbacks=[Watching()])
    train(tiny_pool, tmp_path, max_steps=5, trainer=five)
    assert seen == [(step // 2, step) for step in range(5) for _ in range(5)]
    with pytest.raises(
        ValueError, match=r"batch_size=32, 13 to a step \(trainer\.accumulate_grad_batches\), is more than"
    ):
        train(tiny_pool, tmp_path, max_steps=5, trainer=partial(CPU, accumulate_grad_batches=13))
