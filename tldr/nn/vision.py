"""Image encoders: timm's vision transformers, giving tokens.

`base` and larger are the published ViTs (patch 16, 224 pixels); `tiny` puts a convolutional stem (Xiao et al. 2021,
arXiv 2106.14881) before two ViT blocks, which learns from 64-pixel scenes in minutes of CPU.

Shapes: B pictures, P prefix tokens (the class token, if the backbone has one), L patch tokens, D width.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ConvStem(nn.Module):
    """(B, 3, H, W) -> (B, L, D) by a 4x4/4 and two 3x3/2 convolutions: one token per 16 x 16 pixels."""

    def __init__(
        self, img_size: int = 64, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 96, **_: Any
    ) -> None:
        super().__init__()
        if patch_size != 16:
            raise ValueError(f"the convolutional stem has patches of 16 pixels, not patch_size={patch_size}")
        self.grid_size = (img_size // 16, img_size // 16)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim // 2, 4, stride=4, bias=False),
            nn.BatchNorm2d(embed_dim // 2),
            nn.ReLU(),
            nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(embed_dim),
            nn.ReLU(),
            nn.Conv2d(embed_dim, embed_dim, 3, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, D)."""
        return self.stem(images).flatten(2).transpose(1, 2)


class ImageEncoder(nn.Module):
    """A timm vision transformer without its head.

    ``backbone`` is a timm model name (``vit_base_patch16_224``), or ``conv_stem`` for the small encoder, which takes
    ``width``, ``depth`` and ``heads``. ``pretrained`` asks timm for its weights (a download).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        *,
        image_size: int,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        pretrained: bool = False,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if backbone == "conv_stem":
            if pretrained or width is None or depth is None or heads is None:
                raise ValueError("backbone=conv_stem needs width, depth and heads, and has no pretrained weights")
            vit: Any = VisionTransformer(
                img_size=image_size,
                patch_size=16,
                embed_dim=width,
                depth=depth,
                num_heads=heads,
                class_token=False,
                global_pool="avg",
                fc_norm=False,  # tokens leave normalised, not only their mean
                num_classes=0,
                drop_path_rate=drop_path,
                embed_layer=ConvStem,  # pyright: ignore[reportArgumentType]  (timm types it as its own class)
            )
        else:
            if not timm.is_model(backbone):
                raise ValueError(f"timm has no model {backbone!r}; timm.list_models('vit*') lists them")
            vit = timm.create_model(
                backbone, pretrained=pretrained, img_size=image_size, num_classes=0, drop_path_rate=drop_path
            )
        vit.set_grad_checkpointing(gradient_checkpointing)
        self.vit = vit
        self.image_size = image_size
        self.width: int = vit.num_features
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self.num_tokens: int = vit.patch_embed.num_patches
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, or float already normalised -> (B, P+L, D) tokens, prefix tokens first."""
        if images.dtype == torch.uint8:
            images = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        return self.vit.forward_features(images)

    def patches(self, tokens: Tensor) -> Tensor:
        """(B, P+L, D) -> (B, L, D): what the codebook sees (the paper's L = 196 counts no class token)."""
        return tokens[:, self.num_prefix_tokens :]

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, P+L, D) -> (B, D): the class token where there is one, else the mean."""
        return tokens[:, 0] if self.num_prefix_tokens else tokens.mean(1)
