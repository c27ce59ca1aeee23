"""One text transformer in three roles, as BLIP's mixture of encoder-decoder (Li et al. 2022, arXiv 2201.12086, section
3.1).

Layers are BERT's (post-norm; ``pre_norm=True`` for small models trained from scratch, which learn faster so), each
with self-attention, cross-attention to image tokens, and a feed-forward network: as *text encoder* it runs without the
image, as *image-grounded encoder* with it, as *image-grounded decoder* with it and a causal mask. Encoder and decoder
share everything but self-attention (``separate_decoder=True``).

Shapes: B texts, T text tokens, L image tokens, D width, V vocabulary, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head attention of (B, T, D) queries over (B, S, C) keys and values."""

    def __init__(self, width: int, heads: int, key_width: int | None = None, *, pre_norm: bool, dropout: float) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width or width, width)
        self.value = nn.Linear(key_width or width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.drop = nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, D/H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C) -> keys and values, each (B, H, S, D/H)."""
        return self.split(self.key(x)), self.split(self.value(x))

    def queries(self, x: Tensor) -> Tensor:
        """What a pre-norm attention looks from (and, in self-attention, at): the normalised states."""
        return self.norm(x) if self.pre_norm else x

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D); ``mask`` broadcasts to (B, H, T, S), True where attention is allowed."""
        key, value = keys_values
        out = F.scaled_dot_product_attention(
            self.split(self.query(self.queries(x))), key, value, mask, dropout_p=self.dropout if self.training else 0.0
        )
        out = out.transpose(1, 2).flatten(2)  # (B, T, D)
        out = x + self.drop(self.out(out))
        return out if self.pre_norm else self.norm(out)


class Layer(nn.Module):
    """One BERT layer with optional cross-attention and, for the decoder's role, a self-attention of its own."""

    def __init__(
        self, width: int, heads: int, *, image_width: int | None, separate_decoder: bool, pre_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        make = partial(Attention, width, heads, pre_norm=pre_norm, dropout=dropout)
        self.pre_norm = pre_norm
        self.attention = make()
        self.decoder_attention = make() if separate_decoder else None
        self.cross_attention = make(image_width) if image_width else None
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, image: Tensor | None, causal: bool, cache: LayerCache | None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), attending to ``image`` (B, L, C) where it is given."""
        attention = self.decoder_attention if causal and self.decoder_attention is not None else self.attention
        keys_values = attention.keys_values(attention.queries(x))
        if cache is not None:
            keys_values = cache.extend(keys_values)
        x = attention(x, keys_values, mask)
        if image is not None:
            if self.cross_attention is None:
                raise ValueError("this text transformer was built without image_width and cannot look at an image")
            if cache is None:
                looked_at = self.cross_attention.keys_values(image)
            else:
                cache.image = cache.image or self.cross_attention.keys_values(image)
                looked_at = cache.image
            x = self.cross_attention(x, looked_at, None)
        inner = F.gelu(self.inner(self.norm(x) if self.pre_norm else x))
        x = x + self.drop(self.outer(inner))
        return x if self.pre_norm else self.norm(x)


@dataclass
class LayerCache:
    """Keys and values of what one layer has seen: the text so far, and the image (computed once)."""

    text: tuple[Tensor, Tensor] | None = None
    image: tuple[Tensor, Tensor] | None = None

    def extend(self, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Append (B, H, t, D/H) keys and values to those of the text so far."""
        if self.text is not None:
            new = (torch.cat([self.text[0], new[0]], 2), torch.cat([self.text[1], new[1]], 2))
        self.text = new
        return new

    def select(self, rows: Tensor, *, image: bool) -> None:
        """Reorder the batch (beam search); ``image`` says whether the beams of different pictures mix."""
        if self.text is not None:
            self.text = (self.text[0][rows], self.text[1][rows])
        if image and self.image is not None:
            self.image = (self.image[0][rows], self.image[1][rows])


@dataclass
class Cache:
    """What a decoder keeps between the tokens that it generates."""

    layers: list[LayerCache] = field(default_factory=list)
    length: int = 0


class TextTransformer(nn.Module):
    """BERT with cross-attention and a language-modelling head tied to the word embeddings.

    ``image_width`` is the width of the image tokens to look at (None: a text encoder only).
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int,
        depth: int,
        heads: int,
        max_length: int,
        image_width: int | None = None,
        separate_decoder: bool = False,
        pre_norm: bool = False,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.max_length = width, max_length
        self.gradient_checkpointing = gradient_checkpointing
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(
                width,
                heads,
                image_width=image_width,
                separate_decoder=separate_decoder,
                pre_norm=pre_norm,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.last_norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(_init_bert)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        image: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """(B, T) tokens -> (B, T, D) hidden states.

        ``mask`` (B, T) is True at real tokens; ``image`` (B, L, image_width) turns cross-attention on; ``causal`` plays
        the decoder's role. With a ``cache``, ``tokens`` are those that follow the ones already seen.
        """
        seen = cache.length if cache else 0
        length = seen + tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens, but text.max_length is {self.max_length}")
        if cache is not None:
            cache.layers = cache.layers or [LayerCache() for _ in self.layers]
            cache.length = length
        places = torch.arange(seen, length, device=tokens.device)
        x = self.drop(self.norm(self.words(tokens) + self.positions(places)))
        allowed = None if mask is None else mask[:, None, None, :].bool()  # (B, 1, 1, T)
        if causal:
            order = torch.ones(tokens.shape[1], length, dtype=torch.bool, device=tokens.device).tril(seen)
            allowed = order if allowed is None else allowed & order
        for i, layer in enumerate(self.layers):
            layer_cache = cache.layers[i] if cache else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, allowed, image, causal, layer_cache, use_reentrant=False)
            else:
                x = layer(x, allowed, image, causal, layer_cache)
        return self.last_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states -> (..., V) scores of the next (or masked) word."""
        return F.linear(self.head(hidden), self.words.weight, self.head_bias)


def _init_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def by_length(lengths: Tensor, compute: Callable[[Tensor, int], Tensor], *, groups: int = 4) -> Tensor:
    """(B, ...) what ``compute(rows, longest)`` gives for rows of like ``lengths`` (B,), in the order of the batch.

    Most captions are far shorter than the longest of a batch: padding all to it doubles the work.
    """
    order = lengths.argsort(stable=True)
    found = [compute(rows, int(lengths[rows[-1]])) for rows in order.chunk(groups)]
    return torch.cat(found)[order.argsort()]
