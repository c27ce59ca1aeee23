from typing import Any

import pytest
import torch

from tldr.nn.text import TextTransformer
from tldr.nn.twin import TwinAttention, see_two

TOKENS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])


def build(*, depth: int = 2, **options) -> TextTransformer:
    torch.manual_seed(0)
    text = TextTransformer(6, width=8, depth=depth, heads=2, max_length=6, image_width=5, **options)
    for parameter in text.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return text.eval()


@pytest.fixture
def pictures():
    return torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_a_picture_twice_is_at_first_seen_as_once(pictures, pre_norm):
    text = build(pre_norm=pre_norm)
    once = text(TOKENS, image=pictures[0])
    see_two(text)
    torch.testing.assert_close(text(TOKENS, image=torch.cat([pictures[0], pictures[0]], 1)), once)
    assert not torch.allclose(text(TOKENS, image=torch.cat([pictures[0], pictures[1]], 1)), once, atol=1e-2)


@torch.no_grad()
def test_the_merge_is_a_mean_below_and_a_map_above(pictures):
    text = build(depth=5)
    see_two(text)
    twins: list[Any] = [layer.cross_attention for layer in text.layers]
    assert all(isinstance(twin, TwinAttention) for twin in twins)
    assert [twin.merge is not None for twin in twins] == [False, False, True, True, True]
    x = torch.randn(2, 4, 8)
    for twin in twins[1:3]:
        torch.nn.init.normal_(twin.second.out.weight)  # the two are no longer equal
        keys_values = twin.keys_values(torch.cat([pictures[0], pictures[1]], 1))
        seen = [
            one.out(((one.split(one.query(x)) @ key.mT / 2).softmax(3) @ value).transpose(1, 2).flatten(2))
            for one, (key, value) in zip((twin.first, twin.second), keys_values, strict=True)
        ]
        torch.testing.assert_close(twin(x, keys_values=keys_values), twin.first.norm(x + (seen[0] + seen[1]) / 2))
        if twin.merge is not None:
            twin.merge.weight.mul_(2)
            torch.testing.assert_close(twin(x, keys_values=keys_values), twin.first.norm(x + seen[0] + seen[1]))


def test_all_of_it_learns(pictures):
    text = build(depth=3).train()
    see_two(text)
    text(TOKENS, image=torch.cat([pictures[0], pictures[1]], 1)).pow(3).sum().backward()
    names = [name for name, p in text.named_parameters() if p.grad is None and not name.startswith("head")]
    assert names == []


def test_two_cannot_be_made_of_none_or_of_two():
    with pytest.raises(ValueError, match="no cross-attention of its own"):
        see_two(TextTransformer(6, width=8, depth=1, heads=2, max_length=6))
    text = build()
    see_two(text)
    with pytest.raises(ValueError, match="no cross-attention of its own"):
        see_two(text)
