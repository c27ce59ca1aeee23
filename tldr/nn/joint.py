"""One transformer for words and patches together, as ViLT's (Kim et al. 2021, arXiv 2102.03334, section 3.1).

Neither a text encoder nor an image encoder comes before it: words are looked up, patches projected linearly, each plus
its position and its type, and the blocks of a vision transformer, which may bring ImageNet's weights, read them in one
sequence. The pooled feature is that of the text's [CLS].

Shapes: B pairs, T text tokens, L image tokens (patches, and the class token if the backbone has one), D width.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tldr.nn.text import TextTransformer, by_length
from tldr.nn.vision import ImageEncoder

TEXT, IMAGE, SECOND = range(3)


class JointTransformer(nn.Module):
    """The blocks are those of ``image``; of ``text``, built with ``depth=0``, it takes the word embeddings and the head
    that guesses words. Both must have the same width."""

    def __init__(self, image: ImageEncoder, text: TextTransformer) -> None:
        super().__init__()
        if len(text.layers):
            raise ValueError(f"text.depth={len(text.layers)}, but one transformer reads words and patches: set 0")
        if image.width != text.width:
            raise ValueError(
                f"text.width={text.width} must be the image's, {image.width}, or null: they share a transformer"
            )
        self.image, self.text, self.width = image, text, image.width
        # The types of text and image, and the difference between a second picture's and the first's, initially 0.
        types = 0.02 * torch.randn(3, self.width)
        types[SECOND] = 0
        self.types = nn.Parameter(types)
        self.pooler = nn.Linear(self.width, self.width)
        nn.init.normal_(self.pooler.weight, std=0.02)
        nn.init.zeros_(self.pooler.bias)

    def widen_start(self) -> None:
        """Scale up the initial weights of a transformer with D < 768, so that its layers add as much to their inputs as
        ViT-B's. The standard deviation of 0.02 is for D = 768; with it a narrow transformer sees nothing for many
        steps."""
        factor = max(1.0, (768 / self.width) ** 0.5)
        with torch.no_grad():
            for block in self.image.vit.blocks:
                for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                    layer.weight.mul_(factor)
            self.pooler.weight.mul_(factor)

    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, or float already normalised -> (B, L, D) projected patches with their positions."""
        if images.dtype == torch.uint8:
            images = (images.to(self.image.mean.dtype) / 255 - self.image.mean) / self.image.std
        vit = self.image.vit
        return vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))

    def words(self, tokens: Tensor) -> Tensor:
        """(B, T) tokens -> (B, T, D) words with their positions, normalised."""
        return self.text(tokens)

    def forward(self, patches: Tensor, tokens: Tensor, mask: Tensor, *, place: int = 0) -> tuple[Tensor, Tensor]:
        """(B, L, D) of `patches`, (B, T) tokens and their mask -> the states of the words (B, T, D) and of the image
        tokens (B, L, D). ``place`` 1 says that the picture is the second of two (NLVR2). What stands where a text is
        padded means nothing."""
        if place not in (0, 1):
            raise ValueError(f"place={place}; a picture is the first of two, 0, or the second, 1")
        kind = self.types[IMAGE] + place * self.types[SECOND]
        text, image = self.words(tokens) + self.types[TEXT], patches + kind

        def read(rows: Tensor, longest: int) -> Tensor:
            both = self._blocks(torch.cat([image[rows], text[rows, :longest]], 1), mask[rows, :longest].bool())
            return F.pad(both, (0, 0, 0, tokens.shape[1] - longest))

        lengths = mask.sum(1)
        if tokens.device.type == "cpu":  # where padding is work; an accelerator wants large batches
            x = by_length(lengths, read)  # (B, L + T, D)
        else:
            x = read(torch.arange(len(tokens), device=tokens.device), tokens.shape[1])
        return x[:, patches.shape[1] :], x[:, : patches.shape[1]]

    def _blocks(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L + T, D) image tokens and words, (B, T) mask of the words -> (B, L + T, D) states, normalised."""
        vit = self.image.vit
        allowed = F.pad(mask, (x.shape[1] - mask.shape[1], 0), value=True)[:, None, None, :]  # (B, 1, 1, L + T)
        for block in vit.blocks:
            step = partial(block, attn_mask=allowed)
            x = checkpoint(step, x, use_reentrant=False) if vit.grad_checkpointing and self.training else step(x)  # pyright: ignore[reportAssignmentType]
        return vit.norm(x)

    def pool(self, words: Tensor) -> Tensor:
        """(B, T, D) states of the words -> (B, D), between -1 and 1."""
        return torch.tanh(self.pooler(words[:, 0]))
