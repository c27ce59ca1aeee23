from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tldr.nn.optimizer import adamw, depth_scales
from tldr.nn.text import TextTransformer


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


def test_a_warm_up_that_the_run_does_not_finish_is_told(capsys):
    """As that of a large size has, in a run of the small ones' length."""
    rates(warmup_steps=20)
    assert not capsys.readouterr().out
    rates(warmup_steps=80)
    assert "warmup_steps=80 is more than the 20 steps of the run: it ends at 25% of lr=0.1" in capsys.readouterr().out


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.lr=0 must be above 0: it is the peak rate"):
        rates(lr=0)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"optimizer\.schedule='sine'; choose from cosine, linear, step, constant"):
        adamw(network(), total_steps=10, lr=0.1, schedule="sine")


def test_the_rate_falls_in_a_line():
    found = rates(warmup_steps=4, schedule="linear", min_lr=0.02)
    assert found[4] == pytest.approx(0.1)
    assert found[12] == pytest.approx(0.06)
    assert found[20] == pytest.approx(0.02)


def test_a_warm_up_can_be_a_share_of_the_run():
    assert rates(warmup_steps=0.2) == rates(warmup_steps=4)


def test_the_rate_falls_in_steps():
    """BLIP: 0.9 an epoch, never below the least; the warm-up lies in the first epoch."""
    found = rates(schedule="step", decay_steps=5, decay_rate=0.5, warmup_steps=2, min_lr=0.02)
    assert found == pytest.approx([0.05] + [0.1] * 4 + [0.05] * 5 + [0.025] * 5 + [0.02] * 6)
    with pytest.raises(ValueError, match=r"schedule=step needs optimizer\.decay_steps"):
        adamw(network(), total_steps=10, lr=0.1, schedule="step")


def test_a_warm_up_that_passes_decays_is_refused():
    """The rate would fall off a cliff where it ends: BLIP warms up inside its first epoch."""
    assert rates(schedule="step", decay_steps=5, warmup_steps=5)[4:6] == pytest.approx([0.1, 0.09])
    with pytest.raises(ValueError, match=r"warmup_steps=6 is more than optimizer\.decay_steps=5.*lower warmup_steps"):
        rates(schedule="step", decay_steps=5, warmup_steps=6)
    with pytest.raises(ValueError, match=r"warmup_steps=6 "):
        rates(schedule="step", decay_steps=5, warmup_steps=0.3)


def groups(module: nn.Module, **options) -> dict[str, dict]:
    optimizer = adamw(module, total_steps=10, lr=0.1, schedule="constant", **options)["optimizer"]
    held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: held[id(p)] for name, p in module.named_parameters()}


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image: Any = timm.create_model("test_vit", num_classes=0)
        self.text = TextTransformer(9, width=8, depth=3, heads=2, max_length=5)
        self.head = nn.Linear(8, 2)


def test_places_do_not_decay():
    found = groups(Towers(), weight_decay=0.5)
    kept = {name.split(".")[1] for name, group in found.items() if not group["weight_decay"] and "bias" not in name}
    assert {"pos_embed", "cls_token", "positions"} <= kept
    assert "words" not in kept
    assert found["image.patch_embed.proj.weight"]["weight_decay"] == 0.5


def test_early_layers_learn_more_slowly():
    model = Towers()
    depth = len(model.image.blocks)
    found = {name: group["lr"] for name, group in groups(model, layer_decay=0.5, weight_decay=0).items()}
    assert found["head.weight"] == found["image.norm.weight"] == found["text.head.0.weight"] == pytest.approx(0.1)
    assert found["image.blocks.0.attn.qkv.weight"] == pytest.approx(0.1 * 0.5**depth)
    assert found[f"image.blocks.{depth - 1}.attn.qkv.weight"] == pytest.approx(0.05)
    assert found["image.pos_embed"] == found["image.patch_embed.proj.weight"] == pytest.approx(0.1 * 0.5 ** (depth + 1))
    assert [found[f"text.layers.{i}.inner.weight"] for i in range(3)] == pytest.approx([0.0125, 0.025, 0.05])
    assert found["text.words.weight"] == found["text.norm.weight"] == pytest.approx(0.00625)
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay=1\.5"):
        adamw(model, total_steps=10, lr=0.1, layer_decay=1.5)


def test_a_tower_may_be_the_whole_module():
    assert depth_scales(["words.weight", "layers.0.x", "layers.1.x", "head.weight"], 0.5) == {
        "words.weight": 0.125, "layers.0.x": 0.25, "layers.1.x": 0.5, "head.weight": 1,
    }  # fmt: skip


def test_words_may_enter_the_pictures_tower():
    """ViLT: one transformer; the words only look themselves up elsewhere."""
    assert depth_scales(["net.vit.blocks.0.x", "net.vit.norm.x", "net.text.words.weight", "net.text.norm.x"], 0.5) == {
        "net.vit.blocks.0.x": 0.5, "net.vit.norm.x": 1, "net.text.words.weight": 0.25, "net.text.norm.x": 0.25,
    }  # fmt: skip


def test_a_head_learns_faster():
    found = groups(Towers(), head_lr_scale=10, heads=["head."])
    assert found["head.weight"]["lr"] == pytest.approx(1.0)
    assert found["text.head.0.weight"]["lr"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"head_lr_scale=10, but Towers declares no head"):
        groups(Towers(), head_lr_scale=10)
