"""CLIP (Radford et al. 2021, arXiv 2103.00020): two encoders, one contrastive loss with a learned temperature.

Shapes: B pairs of this process, D width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd

from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import Model
from tldr.nn.losses import info_nce
from tldr.nn.text import TextTransformer, by_length
from tldr.nn.vision import ImageEncoder


class Clip(Model):
    """Dual encoder. ``image`` and ``text`` are the arguments of `ImageEncoder` and `TextTransformer`;
    ``tokenizer`` is a `Tokenizer` as JSON."""

    def __init__(
        self,
        *,
        tokenizer: str,
        image: Mapping[str, Any],
        text: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        embed_dim: int = 256,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters()
        self.tokenizer = Tokenizer(tokenizer)
        self.image_encoder = ImageEncoder(**image)
        self.text_encoder = TextTransformer(len(self.tokenizer), **text)
        self.text_encoder.head.requires_grad_(False)  # it writes nothing: DDP refuses weights that no loss reaches
        self.text_encoder.head_bias.requires_grad_(False)
        self.image_size = self.image_encoder.image_size
        self.image_projection = nn.Linear(self.image_encoder.width, embed_dim, bias=False)
        self.text_projection = nn.Linear(self.text_encoder.width, embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E) unit vectors."""
        encoder = self.image_encoder
        return F.normalize(self.image_projection(encoder.pool(encoder(images))), dim=-1)

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, E) unit vectors: the mean over the tokens."""
        tokens, mask = self.tokenizer(captions, max_length=self.text_encoder.max_length, device=self.device)

        def mean(rows: Tensor, longest: int) -> Tensor:
            real = mask[rows, :longest, None]
            hidden = self.text_encoder(tokens[rows, :longest], mask[rows, :longest]) * real
            return hidden.sum(1) / real.sum(1)

        return F.normalize(self.text_projection(by_length(mask.sum(1), mean)), dim=-1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """InfoNCE over the pairs of all processes, gathered with gradient."""
        image, text = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        scale = self.log_scale.clamp(max=math.log(100)).exp()  # CLIP clips the scale at 100
        rank = dist.get_rank() if dist.is_initialized() else 0
        return {"itc": info_nce(image, text, scale, _gather(image), _gather(text), rank)}

    @torch.inference_mode()
    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """``embedding`` (B, E) of the picture, ``alignment`` (B,) the cosine of picture and caption (the CLIP
        score)."""
        image, text = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        return {"embedding": image, "alignment": (image * text).sum(1)}


def _gather(x: Tensor) -> Tensor:
    """(B, E) of this process -> (world * B, E) of all; the gradient finds its way back."""
    if not dist.is_initialized():
        return x
    return all_gather_tensor_autograd(x.contiguous(), 0, dist.group.WORLD)  # pyright: ignore[reportArgumentType]
