"""CLIP (Radford et al. 2021, arXiv 2103.00020) in Hugging Face's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tldr.hub import naming, vit
from tldr.hub.checkpoint import Weights
from tldr.hub.folder import normalisation, resize_mode, tokenizer_of, write, write_processor
from tldr.nn.text import Attention, Layer, TextTransformer
from tldr.nn.vision import ImageEncoder

LAYER = {
    "attention.norm": "layer_norm1",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "norm": "layer_norm2",
    "inner": "mlp.fc1",
    "outer": "mlp.fc2",
}
HEADS: naming.Names = {
    "image_projection.weight": "visual_projection.weight",
    "text_projection.weight": "text_projection.weight",
    "log_scale": "logit_scale",
}
UNUSED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def text_names(depth: int) -> naming.Names:
    """Our names of the text and Hugging Face's."""
    found: naming.Names = {
        "words.weight": "text_model.embeddings.token_embedding.weight",
        "positions.weight": "text_model.embeddings.position_embedding.weight",
    }
    found |= naming.expand({"last_norm": "final_layer_norm"}, "", "text_model.")
    for i in range(depth):
        found |= naming.expand(LAYER, f"layers.{i}.", f"text_model.encoder.layers.{i}.")
    return found


def read(folder: Path, config: dict[str, Any], state: dict[str, Tensor], model: str) -> Weights:
    """A ``CLIPModel``: whole for a Clip, the text alone for a TextTransformer, else the image encoder."""
    from transformers import CLIPConfig

    full = CLIPConfig.from_dict(config).to_dict()
    text_config, vision_config = full["text_config"], full["vision_config"]
    image = vit.names("clip", vision_config["num_hidden_layers"], "vision_model.")
    text = text_names(text_config["num_hidden_layers"])
    arguments: dict[str, Any] = {}
    found, covers = naming.unknown(state, image, text, HEADS, ignore=UNUSED), {}
    if model in naming.IMAGE:
        found |= naming.place(model, image=vit.whole(naming.translate(state, image)))
        covers |= naming.place(model, image=naming.empty(image))
        arguments["image"] = naming.image_arguments(
            vision_config, pre_norm=True, patch_bias=False, resize_mode=resize_mode(folder), **normalisation(folder)
        )
    tokenizer = None
    if model in ("Clip", "TextTransformer"):
        found |= naming.place(model, text=naming.translate(state, text))
        covers |= naming.place(model, text=naming.empty(text))
        arguments["text"] = naming.text_arguments(text_config, pre_norm=True, embed_norm=False)
        tokenizer = tokenizer_of(folder)
    if model == "Clip":
        found |= naming.translate(state, HEADS)
        if "log_scale" in found:
            found["log_scale"] = found["log_scale"].reshape(1)  # a scalar there
        covers |= naming.empty(HEADS)
        arguments |= {"embed_dim": full["projection_dim"], "text_pooling": "end", "causal": True, "loss": "infonce"}
    return Weights("CLIPModel", arguments, found, tuple(covers), tokenizer.json if tokenizer else None)


def config_of(module: nn.Module) -> Any:
    """The ``CLIPConfig`` of a Clip. Raises ValueError where it is not built as the published one."""
    from transformers import CLIPConfig

    owner: Any = module
    image, text, tokenizer = owner.image_encoder, owner.text_encoder, owner.tokenizer
    assert isinstance(image, ImageEncoder)
    assert isinstance(text, TextTransformer)
    if owner.bias is not None or owner.text_pooling != "end" or not owner.causal:
        raise ValueError("a CLIPModel has loss=infonce, text_pooling=end and causal=true; this Clip differs")
    settings, roles = _text_settings(text), {"bos": "cls", "eos": "sep", "pad": "pad"}
    special = {f"{theirs}_token_id": getattr(tokenizer, ours) for theirs, ours in roles.items()}
    vision, embed_dim = vit.image_settings(image, pre_norm=True), owner.image_projection.out_features
    return CLIPConfig(
        vision_config={**vision, "projection_dim": embed_dim},
        text_config={**settings, **special, "projection_dim": embed_dim},
        projection_dim=embed_dim,
    )


def export(module: nn.Module, folder: Path) -> None:
    """Write a Clip as a ``CLIPModel``, with tokenizer and settings of pictures."""
    from transformers import CLIPModel

    owner: Any = module
    config, state = config_of(module), module.state_dict()
    pictures = vit.names("clip", config.vision_config.num_hidden_layers, "vision_model.")
    found = naming.untranslate(vit.flat(naming.under("image_encoder.", state)), pictures)
    texts = text_names(config.text_config.num_hidden_layers)
    found |= naming.untranslate(naming.under("text_encoder.", state), texts)
    state["log_scale"] = state["log_scale"].reshape(())
    write(CLIPModel, config, found | naming.untranslate(state, HEADS), folder)
    owner.tokenizer.save(folder, max_length=owner.text_encoder.max_length)
    write_processor(owner.image_encoder, "CLIPImageProcessor", folder)


def _text_settings(text: TextTransformer) -> dict[str, Any]:
    layer = text.layers[0]
    assert isinstance(layer, Layer)
    assert isinstance(layer.attention, Attention)
    epsilons = {
        norm.eps for norm in (layer.norm, layer.attention.norm, text.last_norm) if isinstance(norm, nn.LayerNorm)
    }
    if not layer.pre_norm or isinstance(text.norm, nn.LayerNorm) or len(epsilons) > 1:
        raise ValueError("a CLIPModel's text has pre_norm=true, embed_norm=false and one norm_eps; this one differs")
    return {
        "vocab_size": text.words.num_embeddings,
        "hidden_size": text.width,
        "num_hidden_layers": len(text.layers),
        "num_attention_heads": layer.attention.heads,
        "intermediate_size": layer.inner.out_features,
        "max_position_embeddings": text.max_length,
        "layer_norm_eps": layer.norm.eps,
        "hidden_act": layer.activation,
        "attention_dropout": layer.attention.dropout,
    }
