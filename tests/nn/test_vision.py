from typing import Any

import pytest
import timm
import torch

from tldr.nn.vision import CLIP_MEAN, CLIP_STD, ImageEncoder


def small(**options) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder("conv_stem", image_size=64, width=32, depth=2, heads=4, **options)


@pytest.fixture(scope="module")
def conv_stem():
    return small().eval()


@pytest.fixture(scope="module")
def vit():
    """A timm model with a class token, at a size that is not its own."""
    torch.manual_seed(0)
    return ImageEncoder("test_vit", image_size=48).eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@torch.no_grad()
def test_the_small_encoder_gives_a_token_for_16_by_16_pixels(conv_stem, images):
    tokens = conv_stem(images)
    assert tokens.shape == (3, 16, 32)
    assert (conv_stem.num_tokens, conv_stem.num_prefix_tokens, conv_stem.width) == (16, 0, 32)
    torch.testing.assert_close(conv_stem.patches(tokens), tokens)
    torch.testing.assert_close(conv_stem.pool(tokens), tokens.mean(1))
    torch.testing.assert_close(tokens.mean(2), torch.zeros(3, 16), atol=1e-4, rtol=0)  # they leave normalised


@torch.no_grad()
def test_a_vit_keeps_its_class_token_apart(vit):
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    tokens = vit(images)
    assert (vit.num_tokens, vit.num_prefix_tokens) == (9, 1)
    assert tokens.shape == (2, 10, vit.width)
    assert torch.equal(vit.patches(tokens), tokens[:, 1:])
    assert torch.equal(vit.pool(tokens), tokens[:, 0])
    assert (vit.image_size, vit.width) == (48, vit.vit.embed_dim)


@torch.no_grad()
def test_bytes_are_normalised_as_clip_does(conv_stem, images):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(conv_stem((images / 255 - mean) / std), conv_stem(images))


@torch.no_grad()
def test_tokens_are_where_their_pixels_are(conv_stem, images):
    """The stem sees its neighbourhood; position comes from the embeddings, so a moved picture is another one."""
    stem = conv_stem.vit.patch_embed
    changed = images.clone()
    changed[:, :, :8, :8] = 255 - changed[:, :, :8, :8]
    moved = (stem(changed.float()) - stem(images.float())).abs().amax(2)  # (B, L)
    assert (moved[:, 0] > 0).all()
    assert not moved[:, [2, 3, 10, 15]].any()
    rolled = conv_stem(images.roll(16, 3))
    assert not torch.allclose(conv_stem.pool(rolled), conv_stem.pool(conv_stem(images)), atol=1e-3)


@torch.no_grad()
def test_evaluation_judges_a_picture_alike_in_any_company(conv_stem, images):
    torch.testing.assert_close(conv_stem(images)[1:2], conv_stem(images[1:2]))


def test_gradient_checkpointing_gives_the_same_gradients(images):
    gradients = []
    for checkpointing in (False, True):
        model = small(gradient_checkpointing=checkpointing).train()
        model(images).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert len(gradients[-1]) == len(list(model.parameters()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_an_unknown_way_to_resize_is_named():
    with pytest.raises(ValueError, match=r"resize_mode='centre'; choose from squash, shortest"):
        small(resize_mode="centre")


@torch.no_grad()
def test_a_plain_vit_has_the_sizes_it_is_given(images):
    sizes: dict[str, Any] = {"image_size": 64, "width": 24, "depth": 3, "heads": 2, "patch_size": 8, "mlp_ratio": 1.5}
    encoder = ImageEncoder("vit", norm_eps=1e-3, activation="quick_gelu", pre_norm=True, **sizes).eval()
    assert encoder(images).shape == (3, 1 + 64, 24)
    assert (encoder.num_prefix_tokens, encoder.num_tokens, len(encoder.vit.blocks)) == (1, 64, 3)
    block = encoder.vit.blocks[0]
    assert (block.mlp.fc1.out_features, block.attn.num_heads, block.norm1.eps) == (36, 2, 1e-3)
    assert type(block.mlp.act).__name__ == "QuickGELU"
    assert isinstance(encoder.vit.norm_pre, torch.nn.LayerNorm)
    assert encoder.vit.patch_embed.proj.bias is None  # as CLIP's
    plain = ImageEncoder("vit", class_token=False, **sizes).eval()
    tokens = plain(images)
    assert tokens.shape == (3, 64, 24)
    torch.testing.assert_close(plain.pool(tokens), tokens.mean(1))
    assert plain.vit.patch_embed.proj.bias is not None
    assert ImageEncoder("vit", patch_bias=False, **sizes).vit.patch_embed.proj.bias is None


@torch.no_grad()
def test_bytes_are_normalised_as_asked(images):
    torch.manual_seed(0)
    encoder = ImageEncoder("vit", image_size=64, width=16, depth=1, heads=2, mean=[0.5] * 3, std=[0.25] * 3).eval()
    torch.testing.assert_close(encoder((images / 255 - 0.5) / 0.25), encoder(images))


def test_pretrained_weights_are_asked_of_timm(monkeypatch):
    """For the size that is wanted: timm interpolates the positions."""
    asked, create = {}, timm.create_model

    def pretend(name, *, pretrained, **options):
        asked.update(options, name=name, pretrained=pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", pretend)
    encoder = ImageEncoder("test_vit", image_size=32, pretrained=True, drop_path=0.1)
    assert asked.items() >= {"name": "test_vit", "pretrained": True, "img_size": 32, "drop_path_rate": 0.1}.items()
    assert encoder.num_tokens == 4


def test_constants_are_not_in_checkpoints(conv_stem):
    assert not {"mean", "std"} & set(conv_stem.state_dict())


def test_errors_name_the_option():
    with pytest.raises(ValueError, match="timm has no model 'vit_nano'"):
        ImageEncoder("vit_nano", image_size=64)
    with pytest.raises(ValueError, match="needs width, depth and heads"):
        ImageEncoder("conv_stem", image_size=64, width=32)
    with pytest.raises(ValueError, match="no pretrained weights"):
        small(pretrained=True)
    sizes: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2}
    with pytest.raises(ValueError, match="activation='relu'"):
        ImageEncoder("vit", image_size=64, activation="relu", **sizes)
    with pytest.raises(ValueError, match="image_size=60 is not a multiple of patch_size=16"):
        ImageEncoder("vit", image_size=60, **sizes)
    with pytest.raises(ValueError, match="backbone=vit needs width, depth and heads"):
        ImageEncoder("vit", image_size=64)
    with pytest.raises(ValueError, match="image_size=72 is no multiple of 16, the patches of backbone=conv_stem"):
        ImageEncoder("conv_stem", image_size=72, **sizes)
    with pytest.raises(ValueError, match="image_size=100 is no multiple of 16, the patches of backbone=vit_tiny"):
        ImageEncoder("vit_tiny_patch16_224", image_size=100)
    with pytest.raises(ValueError, match="backbone=conv_stem takes no patch_size, pre_norm; backbone=vit does"):
        ImageEncoder("conv_stem", image_size=64, patch_size=8, pre_norm=True, **sizes)
    with pytest.raises(ValueError, match="backbone=vit_tiny_patch16_224 takes no width; backbone=vit does"):
        ImageEncoder("vit_tiny_patch16_224", image_size=64, width=96)
    for other in ("resnet18", "swin_tiny_patch4_window7_224"):
        with pytest.raises(ValueError, match=f"backbone={other} is no plain vision transformer"):
            ImageEncoder(other, image_size=224)


@pytest.mark.parametrize("backbone", ["vit_wee_patch16_reg1_gap_256", "vit_tiny_patch16_224"])
def test_timms_encoders_train_as_a_whole_and_pool_what_they_have(backbone):
    """Registers are no class token, and no pooling of timm's stays without gradient."""
    encoder = ImageEncoder(backbone, image_size=32)
    tokens = encoder(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    tokens.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert float(tokens.detach().std()) == pytest.approx(1, abs=0.2)  # they leave normalised
    whole = "reg1" not in backbone
    assert torch.equal(encoder.pool(tokens), tokens[:, 0] if whole else tokens[:, 1:].mean(1))


def test_dropout_is_of_training(images):
    sizes: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2}
    encoder = ImageEncoder("vit", image_size=64, dropout=0.5, **sizes)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))
