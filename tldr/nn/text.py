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

BERT_EPS = 1e-12
BERT_STD = 0.02  # of the weights it begins with, at a width of 768


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid's approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class Attention(nn.Module):
    """Multi-head attention of (B, T, D) queries over (B, S, C) keys and values, with its norm and its residual."""

    def __init__(
        self,
        width: int,
        heads: int,
        key_width: int | None = None,
        *,
        pre_norm: bool = False,
        dropout: float = 0.0,
        norm_eps: float = BERT_EPS,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width or width, width)
        self.value = nn.Linear(key_width or width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.drop = nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, D/H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C) -> keys and values, each (B, H, S, D/H)."""
        return self.split(self.key(x)), self.split(self.value(x))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        keys_values: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); ``mask`` broadcasts to (B, H, T, S), True where attention is allowed.

        Without ``keys_values`` the states look at themselves, and at those that ``cache`` remembers.
        """
        states = self.norm(x) if self.pre_norm else x
        if keys_values is None:
            keys_values = self.keys_values(states)
            if cache is not None:
                keys_values = cache.extend(keys_values)
        key, value = keys_values
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(self.split(self.query(states)), key, value, mask, dropout_p=dropout)
        out = out.transpose(1, 2).flatten(2)  # (B, T, D)
        out = x + self.drop(self.out(out))
        return out if self.pre_norm else self.norm(out)


class Layer(nn.Module):
    """One transformer layer with optional cross-attention and, for the decoder's role, a self-attention of its own.

    ``layer(x, mask)`` is an encoder layer over any tokens. ``mlp_width`` is 4 D unless given.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        image_width: int | None = None,
        separate_decoder: bool = False,
        pre_norm: bool = False,
        dropout: float = 0.0,
        activation: str = "gelu",
        norm_eps: float = BERT_EPS,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}; choose from {', '.join(ACTIVATIONS)}")
        make = partial(Attention, width, heads, pre_norm=pre_norm, dropout=dropout, norm_eps=norm_eps)
        self.pre_norm, self.activation = pre_norm, activation
        self.attention = make()
        self.decoder_attention = make() if separate_decoder else None
        self.cross_attention = make(image_width) if image_width else None
        self.inner = nn.Linear(width, mlp_width or 4 * width)
        self.outer = nn.Linear(mlp_width or 4 * width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        image: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), attending to ``image`` (B, L, C) where it is given.

        ``mask`` broadcasts to (B, H, T, S), True where attention is allowed: (B, 1, 1, T) for padded rows. ``causal``
        only chooses the decoder's self-attention: its order is in the mask.
        """
        attention = self.decoder_attention if causal and self.decoder_attention is not None else self.attention
        x = attention(x, mask, cache=cache)
        if image is not None:
            if self.cross_attention is None:
                raise ValueError("this text transformer was built without image_width and cannot look at an image")
            if cache is None:
                looked_at = self.cross_attention.keys_values(image)
            else:
                cache.image = cache.image or self.cross_attention.keys_values(image)
                looked_at = cache.image
            x = self.cross_attention(x, keys_values=looked_at)
        inner = ACTIVATIONS[self.activation](self.inner(self.norm(x) if self.pre_norm else x))
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

    ``image_width`` is the width of the image tokens to look at (None: a text encoder only). The other options make it
    one of the published ones: ``activation`` (gelu, quick_gelu), ``mlp_width`` (4 D unless given), ``embed_norm`` (a
    norm over the embeddings; CLIP has none), ``norm_eps`` (None: BERT's 1e-12, and 1e-5 in the last norm of a pre-norm
    transformer).
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
        activation: str = "gelu",
        norm_eps: float | None = None,
        mlp_width: int | None = None,
        embed_norm: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        eps = BERT_EPS if norm_eps is None else norm_eps
        self.width, self.max_length = width, max_length
        self.gradient_checkpointing = gradient_checkpointing
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.norm = nn.LayerNorm(width, eps=eps) if embed_norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(
                width,
                heads,
                image_width=image_width,
                separate_decoder=separate_decoder,
                pre_norm=pre_norm,
                dropout=dropout,
                activation=activation,
                norm_eps=eps,
                mlp_width=mlp_width,
            )
            for _ in range(depth)
        )
        self.last_norm = nn.LayerNorm(width, eps=norm_eps or 1e-5) if pre_norm else nn.Identity()
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=eps))
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
        nn.init.normal_(module.weight, std=BERT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def by_length(lengths: Tensor, compute: Callable[[Tensor, int], Tensor], *, groups: int = 4) -> Tensor:
    """(B, ...) what ``compute(rows, longest)`` gives for rows of like ``lengths`` (B,), in the order of the batch.

    Most captions are far shorter than the longest of a batch: padding all to it doubles the work.
    """
    order = lengths.argsort(stable=True)
    found = [compute(rows, int(lengths[rows[-1]])) for rows in order.chunk(groups)]
    return torch.cat(found)[order.argsort()]
