"""An image and a text encoder that meet in one space: the unimodal half of BLIP, and what its teacher is a copy of.

Shapes: B pairs, L image tokens, T text tokens, D width, E embedding width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder

POOLINGS = ("cls", "mean")


class Encoders(nn.Module):
    """Both unimodal encoders and their projections."""

    def __init__(self, image: ImageEncoder, text: TextTransformer, embed_dim: int, text_pooling: str) -> None:
        super().__init__()
        if text_pooling not in POOLINGS:
            raise ValueError(f"text_pooling={text_pooling!r}; choose from {', '.join(POOLINGS)}")
        self.image, self.text, self.text_pooling = image, text, text_pooling
        self.image_projection = nn.Linear(image.width, embed_dim)
        self.text_projection = nn.Linear(text.width, embed_dim)

    def embed(self, image: Tensor) -> Tensor:
        """Image tokens (B, L, D) -> (B, E) unit embeddings."""
        return F.normalize(self.image_projection(self.image.pool(image)).float(), dim=-1)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> tokens (B, L, D) and unit embeddings (B, E)."""
        tokens = self.image(images)
        return tokens, self.embed(tokens)

    def encode_texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) -> (B, E) unit embeddings."""
        hidden = self.text(tokens, mask)
        if self.text_pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.text_projection(pooled).float(), dim=-1)


def scale_weights(module: nn.Module, factor: float) -> None:
    """Multiply the weights of every linear map, not those of embeddings and norms: another start."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data.mul_(factor)
