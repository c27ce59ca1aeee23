import json
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from tests.hub.conftest import VISION, spread
from tldr.hub.checkpoint import export, initialise, read
from tldr.nn.vision import CLIP_MEAN, CLIP_STD, ImageEncoder

CONFIG = ViTConfig(**VISION)


def load(folder, **options) -> ImageEncoder:
    weights = read(folder, "ImageEncoder")
    model = ImageEncoder(**{**weights.arguments["image"], **options}).eval()
    assert initialise(model, weights) == []
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
def test_a_vit_computes_what_it_did_and_goes_back(kind, tmp_path, images):
    theirs = spread(kind(CONFIG))
    theirs.save_pretrained(tmp_path / "vit")
    ours = load(tmp_path / "vit")
    expected = getattr(theirs, "vit", theirs)(images).last_hidden_state
    torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)
    assert ours.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    again = ViTModel.from_pretrained(export(ours, tmp_path / "out"), add_pooling_layer=False).eval()
    torch.testing.assert_close(again(images).last_hidden_state, expected, atol=1e-4, rtol=1e-4)
    once_more = load(tmp_path / "out")
    for (name, tensor), other in zip(ours.state_dict().items(), once_more.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@torch.no_grad()
def test_positions_of_another_picture_size_are_interpolated(tmp_path, images):
    theirs = spread(ViTModel(CONFIG))
    theirs.save_pretrained(tmp_path)
    ours, large = load(tmp_path), load(tmp_path, image_size=48)
    before, after = ours.vit.pos_embed, large.vit.pos_embed
    assert after.shape == (1, 1 + 36, 16)
    torch.testing.assert_close(after[:, 0], before[:, 0])  # the class token has no place
    grid, fine = before[0, 1:].view(3, 3, 16), after[0, 1:].view(6, 6, 16)
    torch.testing.assert_close(fine.mean((0, 1)), grid.mean((0, 1)), atol=0.1, rtol=0.1)
    torch.testing.assert_close(fine[2:4, 2:4].mean((0, 1)), grid[1, 1], atol=0.2, rtol=0.2)
    assert large(torch.cat([images, images], 2).repeat(1, 1, 1, 2)).shape == (3, 37, 16)


@torch.no_grad()
def test_a_folder_of_timm(tmp_path, images):
    theirs = spread(timm.create_model("test_vit", img_size=48, num_classes=5))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    settings = {"input_size": [3, 48, 48], "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "num_classes": 5}
    config = {"architecture": "test_vit", "num_classes": 5, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load(tmp_path)
    pictures = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(pictures), theirs.forward_features(pictures))
    torch.testing.assert_close(ours.std.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    for model, prefix in (("Blip", "encoders.image.vit."), ("Captioner", "image_encoder.vit."), ("Vilt", "network.")):
        assert any(name.startswith(prefix) for name in read(tmp_path, model).state)


def test_what_is_not_plain_is_not_exported(tmp_path):
    sizes: dict[str, Any] = {"image_size": 32, "width": 16, "depth": 1, "heads": 2}
    cases: list[dict[str, Any]] = [
        {"backbone": "conv_stem"},
        {"backbone": "vit", "class_token": False},
        {"backbone": "vit", "pre_norm": True},
        {"backbone": "vit", "patch_bias": False},
        {"backbone": "vit", "resize_mode": "shortest"},
    ]
    for options in cases:
        with pytest.raises(ValueError, match=r"no counterpart|patch_bias|resize_mode=shortest"):
            export(ImageEncoder(**sizes, **options), tmp_path / "out")


def test_normalisation_is_ours_where_nothing_is_said():
    encoder = ImageEncoder("vit", image_size=16, width=8, depth=1, heads=2)
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor(CLIP_MEAN))
    torch.testing.assert_close(encoder.std.flatten(), torch.tensor(CLIP_STD))
