from typing import Any

import pytest
import torch

from tldr.nn.joint import JointTransformer
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder

V, D = 11, 16


def build(**text) -> JointTransformer:
    torch.manual_seed(0)
    image = ImageEncoder("vit", image_size=24, patch_size=8, width=D, depth=2, heads=2)
    options: dict[str, Any] = {"width": D, "depth": 0, "heads": 2, "max_length": 12}
    model = JointTransformer(image, TextTransformer(V, **(options | text)))
    for parameter in model.parameters():  # the start is so small that parts would hardly show
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:], mask[2, 2:] = False, False
    images = torch.randint(0, 256, (3, 3, 24, 24), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, V, (3, 7), generator=generator), mask


@torch.no_grad()
def test_words_and_patches_see_each_other(inputs):
    model, (images, tokens, mask) = build(), inputs
    words, patches = model(model.patches(images), tokens, mask)
    assert words.shape == (3, 7, D)
    assert patches.shape == (3, 10, D)  # the class token and 9 patches
    others = tokens.clone()
    others[:, 1] = (others[:, 1] + 1) % V
    assert not torch.isclose(model(model.patches(images), others, mask)[1], patches).all(2).any()
    assert not torch.isclose(model(model.patches(255 - images), tokens, mask)[0], words).all(2)[mask].any()


@torch.no_grad()
def test_rows_are_computed_apart_and_pads_change_nothing(inputs):
    """On the CPU rows of like length are read together: each comes out as if it were alone."""
    model, (images, tokens, mask) = build(), inputs
    patches = model.patches(images)
    words, seen = model(patches, torch.where(mask, tokens, (tokens + 3) % V), mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        alone = model(patches[i : i + 1], tokens[i : i + 1, :length], mask[i : i + 1, :length])
        torch.testing.assert_close(words[i, :length], alone[0][0])
        torch.testing.assert_close(seen[i], alone[1][0])


@torch.no_grad()
def test_types_tell_text_first_picture_and_second(inputs):
    model, (images, tokens, mask) = build(), inputs
    patches = model.patches(images)
    first, second = (model(patches, tokens, mask, place=place)[0] for place in (0, 1))
    assert not torch.allclose(first, second)
    model.types[1] += model.types[2]
    torch.testing.assert_close(model(patches, tokens, mask)[0], second)
    with pytest.raises(ValueError, match="place=2"):
        model(patches, tokens, mask, place=2)


def test_the_second_picture_begins_as_the_first():
    model = JointTransformer(
        ImageEncoder("conv_stem", image_size=32, width=D, depth=1, heads=2),
        TextTransformer(V, width=D, depth=0, heads=2, max_length=12),
    )
    assert not model.types[2].any()
    assert model.types[:2].any(1).all()


def test_pictures_are_normalised_as_the_encoder_says(inputs):
    model, (images, *_) = build(), inputs
    by_hand = (images / 255 - model.image.mean) / model.image.std
    torch.testing.assert_close(model.patches(images), model.patches(by_hand))


def test_the_pooled_feature_is_that_of_the_first_token():
    model, states = build(), torch.randn(2, 5, D)
    torch.testing.assert_close(model.pool(states), (states[:, 0] @ model.pooler.weight.T + model.pooler.bias).tanh())


def test_checkpointed_gradients_are_the_same(inputs):
    gradients = []
    for checkpointing in (False, True):
        model, (images, tokens, mask) = build().train(), inputs
        model.image.vit.set_grad_checkpointing(checkpointing)
        model(model.patches(images), tokens, mask)[0][mask].square().sum().backward()
        gradients.append(model.image.vit.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("text", "message"), [({"depth": 1}, "text.depth=1"), ({"width": 8}, "text.width=8")])
def test_what_does_not_fit_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        build(**text)
