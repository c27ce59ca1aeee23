"""Image encoders: timm's vision transformers, giving tokens.

`base` and larger are the published ViTs (patch 16, 224 pixels); `tiny` puts a convolutional stem (Xiao et al. 2021,
arXiv 2106.14881) before two ViT blocks, which learns from 64-pixel scenes in minutes of CPU. `vit` is built from its
sizes, and can be any of the plain transformers that BLIP, CLIP and Hugging Face's ViT use.

Shapes: B pictures, P prefix tokens (the class token, if the backbone has one), L patch tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed  # pyright: ignore[reportPrivateImportUsage]  (timm's documented home of it)
from timm.models import is_model_in_modules  # pyright: ignore[reportPrivateImportUsage]
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tldr.nn.text import ACTIVATIONS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PLAIN = ("conv_stem", "vit")  # the encoders whose sizes the user gives
RESIZE_MODES = ("squash", "shortest")


class ConvStem(nn.Module):
    """(B, 3, H, W) -> (B, L, D) by a 4x4/4 and two 3x3/2 convolutions: one token per 16 x 16 pixels."""

    def __init__(self, img_size: int = 64, in_chans: int = 3, embed_dim: int = 96, **_: Any) -> None:
        super().__init__()
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

    ``backbone`` is the name of a timm model (``vit_base_patch16_224``), which fixes its sizes, or one that needs
    ``width``, ``depth`` and ``heads``: ``conv_stem``, the small encoder, or ``vit``, any plain vision transformer. Only
    ``vit`` takes ``patch_size``, ``mlp_ratio``, ``norm_eps``, ``activation`` (gelu, quick_gelu), ``pre_norm`` (a norm
    before the first block, as in CLIP), ``class_token`` and ``patch_bias`` (a bias of the patch convolution; None:
    unless ``pre_norm``).

    ``pretrained`` downloads timm's weights. ``mean`` and ``std`` (three numbers) normalise the pictures: CLIP's and
    BLIP's unless given. ``dropout`` applies after positions are added and to the outputs of blocks (ViLT's is 0.1).
    ``resize_mode`` says how pictures become squares first: ``squash`` resizes the whole picture, ``shortest`` takes its
    centre once the shorter side has ``image_size`` pixels (CLIP's).
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
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        pre_norm: bool = False,
        class_token: bool = True,
        patch_bias: bool | None = None,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resize_mode: str = "squash",
        pretrained: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        of_vit = {
            "patch_size": patch_size != 16, "mlp_ratio": mlp_ratio != 4, "norm_eps": norm_eps != 1e-6,
            "activation": activation != "gelu", "pre_norm": pre_norm, "class_token": not class_token,
            "patch_bias": patch_bias is not None,
        }  # fmt: skip
        of_plain = {"width": width is not None, "depth": depth is not None, "heads": heads is not None}
        given = (of_vit if backbone != "vit" else {}) | (of_plain if backbone not in PLAIN else {})
        if ignored := [name for name, other in given.items() if other]:
            raise ValueError(f"backbone={backbone} takes no {', '.join(ignored)}; backbone=vit does")
        if resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode={resize_mode!r}; choose from {', '.join(RESIZE_MODES)}")
        if backbone in PLAIN and (pretrained or None in (width, depth, heads)):
            raise ValueError(f"backbone={backbone} needs width, depth and heads, and has no pretrained weights")
        drops: dict[str, Any] = {"pos_drop_rate": dropout, "proj_drop_rate": dropout, "drop_path_rate": drop_path}
        if backbone == "conv_stem":
            if image_size % 16:
                raise ValueError(f"image_size={image_size} is no multiple of 16, the patches of backbone=conv_stem")
            options: dict[str, Any] = {"class_token": False, "embed_layer": ConvStem}
        elif backbone == "vit":
            if activation not in ACTIVATIONS:
                raise ValueError(f"activation={activation!r}; choose from {', '.join(ACTIVATIONS)}")
            if image_size % patch_size:
                raise ValueError(f"image_size={image_size} is not a multiple of patch_size={patch_size}")
            bias = not pre_norm if patch_bias is None else patch_bias
            options = {
                "patch_size": patch_size,
                "class_token": class_token,
                "mlp_ratio": mlp_ratio,
                "pre_norm": pre_norm,
                "norm_layer": partial(nn.LayerNorm, eps=norm_eps),
                "act_layer": activation,
                "embed_layer": lambda **given: PatchEmbed(**{**given, "bias": bias}),
            }
        elif not timm.is_model(backbone):
            raise ValueError(
                f"timm has no model {backbone!r}; choose conv_stem, vit or one that timm.list_models('vit*') lists"
            )
        elif not is_model_in_modules(backbone, ["vision_transformer"]):
            raise ValueError(f"backbone={backbone} is no plain vision transformer; timm.list_models('vit*') lists some")
        else:
            options = {}
        if backbone in PLAIN:
            prefix = options["class_token"]
            vit: Any = VisionTransformer(
                img_size=image_size,
                embed_dim=width or 0,
                depth=depth or 0,
                num_heads=heads or 0,
                global_pool="token" if prefix else "avg",
                fc_norm=False,  # tokens leave normalised, not only their mean
                num_classes=0,
                **drops,
                **options,
            )
        else:
            vit = timm.create_model(  # without pooling of its own, which nobody would train; tokens leave normalised
                backbone, pretrained=pretrained, img_size=image_size, num_classes=0, global_pool="avg", fc_norm=False,
                **drops,
            )  # fmt: skip
            if image_size % (side := vit.patch_embed.patch_size[0]):
                raise ValueError(
                    f"image_size={image_size} is no multiple of {side}, the patches of backbone={backbone}"
                )
        vit.set_grad_checkpointing(gradient_checkpointing)
        self.vit = vit
        self.image_size, self.resize_mode = image_size, resize_mode
        self.width: int = vit.num_features
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self.num_tokens: int = vit.patch_embed.num_patches
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, or float already normalised -> (B, P+L, D) tokens, prefix tokens first."""
        if images.dtype == torch.uint8:
            images = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        return self.vit.forward_features(images)

    def patches(self, tokens: Tensor) -> Tensor:
        """(B, P+L, D) -> (B, L, D): what the codebook sees (the paper's L = 196 counts no class token)."""
        return tokens[:, self.num_prefix_tokens :]

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, P+L, D) -> (B, D): the class token where there is one, else the mean of the patches."""
        return tokens[:, 0] if self.vit.has_class_token else self.patches(tokens).mean(1)
