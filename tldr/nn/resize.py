"""Weights for pictures of another size: the position embeddings of the patches are interpolated (Dosovitskiy et al.
2021, arXiv 2010.11929, section 3.2), all else fits."""

from __future__ import annotations

from collections.abc import Mapping

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from tldr.nn.vision import ImageEncoder


def resized(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state dict for ``module``, which is built like the one that ``state`` is of but for its pictures' size."""
    found = dict(state)
    for name, part in module.named_modules():
        key = f"{name}.vit.pos_embed".removeprefix(".")
        if isinstance(part, ImageEncoder) and key in found and found[key].shape != part.vit.pos_embed.shape:
            grid, prefix = part.vit.patch_embed.grid_size, 0 if part.vit.no_embed_class else part.num_prefix_tokens
            side = round((found[key].shape[1] - prefix) ** 0.5)
            if side * side == found[key].shape[1] - prefix:  # else the shapes will not fit, and loading says so
                old = [side, side]
                found[key] = resample_abs_pos_embed(found[key], list(grid), old, num_prefix_tokens=prefix)
    return found
