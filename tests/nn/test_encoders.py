import pytest
import torch

from tldr.nn.encoders import Encoders, scale_weights
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder


def build(pooling: str) -> Encoders:
    torch.manual_seed(0)
    image = ImageEncoder("conv_stem", image_size=32, width=16, depth=1, heads=2)
    return Encoders(image, TextTransformer(9, width=8, depth=1, heads=2, max_length=6), 4, pooling).eval()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_embeddings_are_unit_vectors_of_what_is_there(pooling):
    encoders, images = build(pooling), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    tokens, embedding = encoders.encode_images(images)
    assert tokens.shape == (3, 4, 16)
    torch.testing.assert_close(embedding, encoders.embed(tokens))
    text, mask = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 5]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    texts = encoders.encode_texts(text, mask)
    for each in (embedding, texts):
        torch.testing.assert_close(each.norm(dim=1), torch.ones(len(each)))
    torch.testing.assert_close(encoders.encode_texts(text[:1, :3], mask[:1, :3]), texts[:1])


def test_an_unknown_pooling_is_named():
    with pytest.raises(ValueError, match="text_pooling='max'; choose from cls, mean"):
        build("max")


def test_weights_are_scaled_and_nothing_else():
    usual, scaled = build("cls"), build("cls")
    scale_weights(scaled.text, 3.0)
    for name, value in usual.state_dict().items():
        linear = name.startswith("text.") and value.ndim == 2 and "words" not in name and "positions" not in name
        torch.testing.assert_close(scaled.state_dict()[name], value * 3 if linear else value)
