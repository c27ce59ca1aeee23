"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929): Hugging Face's ViT, and timm's own checkpoints.

Also how pictures are encoded in Hugging Face's BLIP and CLIP, whose names differ little.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.layers import PatchEmbed  # pyright: ignore[reportPrivateImportUsage]  (timm's documented home of it)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tldr.hub import naming
from tldr.hub.checkpoint import Weights
from tldr.hub.folder import normalisation, write, write_processor
from tldr.nn.vision import ImageEncoder

VIT_MEAN = (0.5, 0.5, 0.5)  # what Hugging Face's ViT expects where no file says otherwise
ROOT = {  # of modules with weight and bias
    "vit": {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"},
    "blip": {"patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm"},
    "clip": {"norm_pre": "pre_layrnorm", "norm": "post_layernorm"},
}
TENSORS = {
    "vit": {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"},
    "blip": {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding"},
    "clip": {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding.weight",
        "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    },
}
NORMS = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
BLOCK: dict[str, dict[str, str | tuple[str, ...]]] = {
    "vit": {
        "norm1": "layernorm_before",
        "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    "blip": {**NORMS, "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection"},
    "clip": {
        **NORMS,
        "attn.qkv": tuple(f"self_attn.{part}_proj" for part in "qkv"),
        "attn.proj": "self_attn.out_proj",
    },
}
STACKED = ("vit.cls_token", "vit.pos_embed")
LAYERS = {"vit": "encoder.layer", "blip": "encoder.layers", "clip": "encoder.layers"}


def names(style: str, depth: int, theirs: str) -> naming.Names:
    """Names of `ImageEncoder` and those of a ``style`` (vit, blip, clip) of Hugging Face's, which begin with
    ``theirs``."""
    found: naming.Names = {f"vit.{name}": f"{theirs}{other}" for name, other in TENSORS[style].items()}
    found |= naming.expand(ROOT[style], "vit.", theirs)
    for i in range(depth):
        found |= naming.expand(BLOCK[style], f"vit.blocks.{i}.", f"{theirs}{LAYERS[style]}.{i}.")
    return found


def whole(image: naming.State) -> naming.State:
    """CLIP's class token (D,) and positions (P+L, D) -> (1, 1, D) and (1, P+L, D), as timm's."""
    ours = {name: image[name].reshape(1, -1, image[name].shape[-1]) for name in STACKED if name in image}
    return image | ours


def flat(image: naming.State) -> naming.State:
    """The way back from `whole`."""
    return image | {"vit.cls_token": image["vit.cls_token"].flatten(), "vit.pos_embed": image["vit.pos_embed"][0]}


def read(folder: Path, config: dict[str, Any], state: dict[str, Tensor], model: str) -> Weights:
    """Hugging Face's ViT, with or without a classifier, or a folder of timm's."""
    if "architecture" in config:
        return _read_timm(config, state, model)
    from transformers import ViTConfig

    full = ViTConfig.from_dict(config).to_dict()
    if not full["qkv_bias"]:
        raise ValueError("this ViT has no biases in its attention (qkv_bias), ours does")
    prefix = "vit." if any(name.startswith("vit.") for name in state) else ""
    table = names("vit", full["num_hidden_layers"], prefix)
    arguments = naming.image_arguments(full, **normalisation(folder, mean=VIT_MEAN, std=VIT_MEAN))
    return _weights("ViT", arguments, state, table, ("pooler.", "classifier.", "vit.pooler."), model)


def _read_timm(config: Mapping[str, Any], state: dict[str, Tensor], model: str) -> Weights:
    pretrained = config.get("pretrained_cfg", {})
    arguments: dict[str, Any] = {"backbone": config["architecture"]}
    size = pretrained.get("input_size") or (config.get("model_args") or {}).get("img_size")
    if size is not None:
        arguments["image_size"] = size[-1] if isinstance(size, list | tuple) else size
    arguments |= {name: list(pretrained[name]) for name in ("mean", "std") if name in pretrained}
    heads = ("head.", "head_dist.")
    table: naming.Names = {f"vit.{name}": name for name in state if not name.startswith(heads)}
    return _weights("timm", arguments, state, table, heads, model)


def _weights(
    kind: str,
    arguments: dict[str, Any],
    state: dict[str, Tensor],
    table: naming.Names,
    ignore: tuple[str, ...],
    model: str,
) -> Weights:
    """`Weights` of an image encoder alone."""
    found = naming.place(model, image=naming.translate(state, table)) | naming.unknown(state, table, ignore=ignore)
    covers = tuple(naming.place(model, image=naming.empty(table)))
    return Weights(kind, {"image": arguments}, found, covers)


def image_settings(encoder: ImageEncoder, *, pre_norm: bool = False) -> dict[str, Any]:
    """The settings of an image encoder as Hugging Face's configs name them. Raises ValueError where they cannot say it:
    ``pre_norm`` is whether the architecture has a norm before its first block (CLIP's does)."""
    vit, embed = encoder.vit, encoder.vit.patch_embed
    plain = isinstance(vit, VisionTransformer) and isinstance(embed, PatchEmbed)
    plain = plain and vit.has_class_token and encoder.num_prefix_tokens == 1 and not vit.no_embed_class
    if not plain or isinstance(vit.norm_pre, nn.Identity) == pre_norm or isinstance(vit.norm, nn.Identity):
        kind = "CLIP's, with a norm before its blocks" if pre_norm else "the plain one"
        raise ValueError(f"this image encoder is not {kind} with a class token: it has no counterpart in transformers")
    if encoder.resize_mode != "squash" and not pre_norm:
        raise ValueError(f"in transformers, only CLIP crops to the centre (image.resize_mode={encoder.resize_mode})")
    if (embed.proj.bias is None) != pre_norm:
        raise ValueError("in transformers, only CLIP has patches without a bias (image.patch_bias)")
    blocks: Any = vit.blocks
    block: Any = blocks[0]
    act = {"GELU": "gelu", "QuickGELU": "quick_gelu"}.get(type(block.mlp.act).__name__)
    if act is None or not isinstance(block.ls1, nn.Identity):  # a layer scale
        raise ValueError("this image encoder's blocks have no counterpart in transformers")
    return {
        "image_size": encoder.image_size,
        "patch_size": embed.patch_size[0],
        "hidden_size": encoder.width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "layer_norm_eps": block.norm1.eps,
        "hidden_act": act,
    }


def config_of(module: ImageEncoder) -> Any:
    """The ``ViTConfig`` of an image encoder. Raises ValueError for what has no counterpart."""
    from transformers import ViTConfig

    return ViTConfig(**image_settings(module))


def export(module: ImageEncoder, folder: Path) -> None:
    """Write an image encoder as a ``ViTModel`` (without a pooler)."""
    from transformers import ViTModel

    config = config_of(module)
    found = naming.untranslate(module.state_dict(), names("vit", config.num_hidden_layers, ""))
    write(ViTModel, config, found, folder, add_pooling_layer=False)
    write_processor(module, "ViTImageProcessor", folder)
