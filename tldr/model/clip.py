"""CLIP (Radford et al. 2021, arXiv 2103.00020): two encoders, one contrastive loss with a learned temperature.

``loss=infonce`` is CLIP's: each picture chooses among the texts, each text among the pictures. ``loss=siglip`` (Zhai et
al. 2023, arXiv 2303.15343) classifies every pair by itself as matching or not, with a learned bias because so few
match; it needs no normalisation over the batch, and works better with small batches.

Shapes: B pairs of this process, D width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import Model
from tldr.nn.losses import info_nce, sigmoid_loss
from tldr.nn.processes import connected, gather_with_gradient
from tldr.nn.text import TextTransformer, by_length
from tldr.nn.vision import ImageEncoder

LOSSES = ("infonce", "siglip")
POOLINGS = ("mean", "end")


TEXT_WEIGHTS = r"text_(?!encoder\.head)"  # the head writes, and is not asked


class Clip(Model):
    """Dual encoder. ``image`` and ``text`` are the arguments of `ImageEncoder` and `TextTransformer`;
    ``tokenizer`` is a `Tokenizer` as JSON.

    ``text_pooling``: the ``mean`` of the tokens, or the ``end`` token, as published, where the text is ``causal``: no
    token sees those after it. ``bias`` is where the bias of ``loss=siglip`` begins (published, as temperature=0.1).
    """

    signal_weights: ClassVar[Mapping[str, str]] = {
        "embedding": "image_",
        "text_embedding": TEXT_WEIGHTS,
        "alignment": f"image_|{TEXT_WEIGHTS}",
    }
    objective_weights: ClassVar[Mapping[str, str]] = {"itc": signal_weights["alignment"]}

    def __init__(
        self,
        *,
        tokenizer: str,
        image: Mapping[str, Any],
        text: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        embed_dim: int = 256,
        temperature: float = 0.07,
        text_pooling: str = "mean",
        causal: bool = False,
        loss: str = "infonce",
        bias: float = -10.0,
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value, choices in (("loss", loss, LOSSES), ("text_pooling", text_pooling, POOLINGS)):
            if value not in choices:
                raise ValueError(f"{name}={value!r}; choose from {', '.join(choices)}")
        self.save_hyperparameters()
        self.tokenizer = Tokenizer(tokenizer)
        self.image_encoder = ImageEncoder(**image)
        self.text_encoder = TextTransformer(len(self.tokenizer), **text)
        self.text_encoder.head.requires_grad_(False)  # it writes nothing: DDP refuses weights that no loss reaches
        self.text_encoder.head_bias.requires_grad_(False)
        self.image_size, self.resize_mode = self.image_encoder.image_size, self.image_encoder.resize_mode
        self.image_projection = nn.Linear(self.image_encoder.width, embed_dim, bias=False)
        self.text_projection = nn.Linear(self.text_encoder.width, embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))
        self.bias = nn.Parameter(torch.tensor([float(bias)])) if loss == "siglip" else None
        self.text_pooling, self.causal = text_pooling, causal
        self.joint_width = 3 * embed_dim

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E) unit vectors."""
        encoder = self.image_encoder
        return F.normalize(self.image_projection(encoder.pool(encoder(images))).float(), dim=-1)

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, E) unit vectors."""
        tokens, mask = self.tokenizer(captions, max_length=self.text_encoder.max_length, device=self.device)
        lengths = mask.sum(1)

        def pool(rows: Tensor, longest: int) -> Tensor:
            real = mask[rows, :longest]
            hidden = self.text_encoder(tokens[rows, :longest], real, causal=self.causal)
            if self.text_pooling == "end":
                return hidden[torch.arange(len(rows), device=rows.device), lengths[rows] - 1]
            return (hidden * real[..., None]).sum(1) / lengths[rows, None]

        return F.normalize(self.text_projection(by_length(lengths, pool)).float(), dim=-1)

    def joint(self, images: Tensor, captions: Sequence[str], *, place: int = 0) -> Tensor:
        """(B, 3, H, W) and B captions -> (B, 3 E): both embeddings and their product, for heads, of entries about 1 (a
        product of unit vectors would be too small to be seen). ``place`` of several pictures makes no difference."""
        wide = (self.joint_width / 3) ** 0.5
        image, text = wide * self.embed_images(images), wide * self.embed_texts(captions)
        return torch.cat([image, text, image * text], 1)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Keep InfoNCE's scale in its bounds."""
        self._clip()

    def on_train_end(self) -> None:
        """Keep it there after the last step, too."""
        self._clip()

    @torch.no_grad()
    def _clip(self) -> None:
        if self.bias is None:  # CLIP's bounds; clamping in the loss would leave the weight without a gradient to return
            self.log_scale.clamp_(max=math.log(100))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``itc`` over the pairs of all processes, gathered with gradient."""
        image, text = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        rank, texts = dist.get_rank() if connected() else 0, gather_with_gradient(text)
        if self.bias is not None:
            return {"itc": sigmoid_loss(image, texts, self.log_scale.exp(), self.bias, rank)}
        return {"itc": info_nce(image, text, self.log_scale.exp(), gather_with_gradient(image), texts, rank)}

    @torch.inference_mode()
    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """``embedding`` and ``text_embedding`` (B, E) of picture and caption; ``alignment`` (B,) their cosine, the CLIP
        score."""
        image, text = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        return {"embedding": image, "text_embedding": text, "alignment": (image * text).sum(1)}
