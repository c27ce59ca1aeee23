import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from tldr.data.loading import transform
from tldr.model.blip import Blip
from tldr.model.clip import Clip
from tldr.pairs import Pairs
from tldr.tasks.fit import fit

VIT = {"backbone": "vit", "image_size": 32, "patch_size": 16, "width": 16, "depth": 1, "heads": 2}
TEXT = {"width": 16, "depth": 1, "heads": 2, "max_length": 48}
TOWERS = {"image": VIT, "text": TEXT, "optimizer": {"lr": 1e-2, "schedule": "constant"}}
CLIP = partial(Clip, **TOWERS)
CPU = partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)


def train(pairs, folder: Path, model: Any = CLIP, **options) -> dict[str, torch.Tensor]:
    fit(pairs, model=model, trainer=CPU, folder=folder, **{"batch_size": 32, "seed": 0, "vocab_size": 200, **options})
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
    with pytest.raises(ValueError, match=rf"{key}={value!r}; a whole number from 1 \(of a scorer: training.{key}\)"):
        train(tiny_pool, tmp_path, **{"max_steps": 1, **given})


class Terminated(L.Callback):
    """What a cluster's scheduler does to a job."""

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_what_was_terminated_has_not_succeeded(tiny_pool, tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # another test's library may have left its own
    try:
        with pytest.raises(SystemExit) as stopped:
            train(tiny_pool, tmp_path, max_steps=50, callbacks=[Terminated()])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    assert not (tmp_path / "model.ckpt").exists()
