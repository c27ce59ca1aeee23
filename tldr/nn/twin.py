"""Cross-attention to two pictures at once, as BLIP's for NLVR2 (Li et al. 2022, arXiv 2201.12086, section 5.4).

Each layer looks at the first picture by one cross-attention and at the second by another, both copies of the
pre-trained one, and merges what it saw: by the mean in the lower half of the layers, by a linear map of both in the
upper half. The map begins as the mean, so that at first a picture shown twice is seen as it was by the pre-trained
model (BLIP's code begins it at random).

Shapes: B pairs of pictures, T text tokens, L image tokens of one picture, C their width, D width, H heads.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.nn.text import Attention, Layer, TextTransformer

KeysValues = tuple[Tensor, Tensor]


class TwinAttention(nn.Module):
    """Takes the place of a layer's cross-attention; the image tokens are those of both pictures, (B, 2L, C)."""

    def __init__(self, attention: Attention, *, merge: bool) -> None:
        super().__init__()
        width = attention.out.out_features
        self.first, self.second = attention, copy.deepcopy(attention)
        self.second.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]  (the norm and the dropout come once, after the merge)
        self.merge = nn.Linear(2 * width, width) if merge else None
        if self.merge is not None:
            with torch.no_grad():
                self.merge.weight.copy_(torch.cat([torch.eye(width), torch.eye(width)], 1) / 2)
                self.merge.bias.zero_()

    def keys_values(self, image: Tensor) -> tuple[KeysValues, KeysValues]:
        """(B, 2L, C) -> keys and values of either picture, each (B, H, L, D/H)."""
        first, second = image.chunk(2, 1)
        return self.first.keys_values(first), self.second.keys_values(second)

    def forward(self, x: Tensor, *, keys_values: tuple[KeysValues, KeysValues]) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        attention = self.first
        states = attention.norm(x) if attention.pre_norm else x
        seen = [
            _look(one, states, *seen) for one, seen in zip((self.first, self.second), keys_values, strict=True)
        ]  # each (B, T, D)
        merged = (seen[0] + seen[1]) / 2 if self.merge is None else self.merge(torch.cat(seen, -1))
        out = x + attention.drop(merged)
        return out if attention.pre_norm else attention.norm(out)


def _look(attention: Attention, states: Tensor, key: Tensor, value: Tensor) -> Tensor:
    dropout = attention.dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(attention.split(attention.query(states)), key, value, dropout_p=dropout)
    return attention.out(out.transpose(1, 2).flatten(2))


def see_two(text: TextTransformer) -> None:
    """Give every layer of ``text`` a `TwinAttention`: from now on its image tokens are those of two pictures."""
    half = len(text.layers) // 2
    for i, layer in enumerate(text.layers):
        assert isinstance(layer, Layer)
        attention = layer.cross_attention
        if not isinstance(attention, Attention):
            raise ValueError("this text transformer has no cross-attention of its own to make two of")
        layer.cross_attention = TwinAttention(attention, merge=i >= half)  # pyright: ignore[reportAttributeAccessIssue]
