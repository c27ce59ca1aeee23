import pickle
from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import timm
import torch
from torch import nn

from tldr.data.tokenizer import Tokenizer
from tldr.model.base import adamw, load_model
from tldr.model.captioner import Captioner
from tldr.model.clip import Clip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model


def rates(*, steps: int = 21, **options) -> list[float]:
    """The learning rate of each step of a run of 20, and after it."""
    arguments = {"total_steps": 20, "lr": 0.1} | options
    made = adamw(network(), **arguments)
    found = []
    for _ in range(steps):
        found.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return found


def test_matrices_decay_and_vectors_do_not():
    model = network()
    optimizer = adamw(model, total_steps=10, lr=0.1, weight_decay=0.5, schedule="constant")["optimizer"]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # decay alone moves them
    optimizer.step()
    found = {name: round(float(p.flatten()[0].detach()), 6) for name, p in model.named_parameters()}
    assert found == {
        "0.weight": 0.95, "1.weight": 0.95, "3.weight": 0.95,
        "1.bias": 1, "2.weight": 1, "2.bias": 1, "3.bias": 1, "4.weight": 1, "4.bias": 1,
    }  # fmt: skip


def test_what_is_frozen_is_not_the_optimisers():
    model = network()
    model[0].requires_grad_(False)
    optimizer = adamw(model, total_steps=10, lr=0.1, betas=[0.8, 0.9])["optimizer"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if name != "0.weight"}
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in optimizer.param_groups)


def test_the_rate_warms_up_and_falls_as_a_cosine():
    found = rates(warmup_steps=4, min_lr=0.01)
    assert found[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert found[12] == pytest.approx(0.055)  # half-way between the warm-up's end and the run's
    assert found[20] == pytest.approx(0.01)
    assert all(a > b for a, b in pairwise(found[4:]))
    assert rates(warmup_steps=4, min_lr=0.01, steps=25)[24] == pytest.approx(0.01)
    assert rates()[0] == pytest.approx(0.1)
    assert rates()[20] == pytest.approx(0)


def test_the_rate_stays():
    assert rates(warmup_steps=2, schedule="constant") == pytest.approx([0.05] + [0.1] * 20)


def test_a_warm_up_as_long_as_the_run():
    assert rates(warmup_steps=20)[:20] == pytest.approx([0.005 * (step + 1) for step in range(20)])


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"optimizer\.schedule='linear'; choose from cosine, constant"):
        adamw(network(), total_steps=10, lr=0.1, schedule="linear")


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_needs_nothing_else(tiny_checkpoint):
    for path in (tiny_checkpoint, tiny_checkpoint / "model.ckpt", str(tiny_checkpoint)):
        model = load_model(path)
        assert isinstance(model, Captioner)
        assert not any(module.training for module in model.modules())
        assert model.device.type == "cpu"
    stored = torch.load(tiny_checkpoint / "model.ckpt", weights_only=True)
    assert not any("optimizer" in key for key in stored if key != "hyper_parameters")  # two thirds of the bytes


def test_a_missing_one_says_what_writes_it(tmp_path):
    for path in (tmp_path, tmp_path / "model.ckpt"):
        with pytest.raises(ValueError, match=r"no checkpoint at .*model\.ckpt; `python train\.py .* writes one"):
            load_model(path)


class Sly:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("sly"),)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"tldr_class": "tldr.model.clip.Clip", "hyper_parameters": Sly()}, "torch.ckpt")
    Path("plain.ckpt").write_bytes(pickle.dumps(Sly(), protocol=2))
    for name in ("torch.ckpt", "plain.ckpt"):
        with pytest.raises(ValueError, match=rf"{name} is not a checkpoint of tldr's"):
            load_model(name)
    assert not Path("sly").exists()


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path):
    file = tmp_path / "model.ckpt"
    for name in (None, "torch.nn.Linear", "os.system", "tldr.tasks.fit.fit", 3):
        torch.save({"tldr_class": name, "hyper_parameters": {}, "state_dict": {}}, file)
        with pytest.raises(ValueError, match=r"model\.ckpt is not a checkpoint of tldr's"):
            load_model(file)
    for content in (torch.ones(3), [1, 2]):
        torch.save(content, file)
        with pytest.raises(ValueError, match="is not a checkpoint of tldr's"):
            load_model(file)
    for text in (b"", b"hello", b"{}\n", b"PK\x03\x04 and no zip"):
        file.write_bytes(text)
        with pytest.raises(ValueError, match="is not a checkpoint of tldr's"):
            load_model(file)


def test_loading_asks_nobody_for_pretrained_weights(tmp_path, monkeypatch):
    """They are in the checkpoint; who loads it may have no network."""
    asked, create = [], timm.create_model

    def pretend(name, *, pretrained, **options):
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", pretend)
    model = Clip(
        tokenizer=Tokenizer.learn(["a", "b"]).json,
        image={"backbone": "test_vit", "image_size": 32, "pretrained": True},
        text={"width": 8, "depth": 1, "heads": 2, "max_length": 8},
        optimizer={"lr": 1e-3},
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = load_model(tmp_path)
    assert asked == [True, False]
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))
