"""BLIP (Li et al. 2022, arXiv 2201.12086) in Hugging Face's names.

There each task is a class with weights of its own: ``BlipForConditionalGeneration`` has the decoder,
``BlipForImageTextRetrieval`` the encoder, the projections and the matching head. Here one text transformer plays both
roles and shares all but self-attention, as BLIP is pre-trained: the two folders that `export` writes hold the shared
weights twice, and `read` finds them equal. Published checkpoints of two tasks were fine-tuned apart: read one.

Hugging Face's matching does not put ``[ENC]`` at the head of the text as BLIP does (and ours): who compares sets
``input_ids[:, 0]``. The captioner of ours reads patches without the class token, as TL;DR's codebook does: it is a
class of its own (`tldr.hub.captioner`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tldr.data.tokenizer import Tokenizer
from tldr.hub import bert, naming, vit
from tldr.hub.checkpoint import Weights
from tldr.hub.folder import normalisation, tokenizer_of, write, write_processor
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder

UNUSED = (
    "text_decoder.cls.predictions.decoder.",  # tied to the words and the bias
    "text_decoder.bert.embeddings.position_ids",
    "text_encoder.embeddings.position_ids",
    "text_model.embeddings.position_ids",
)
POOLED = (
    "text_model.pooler.",
    "visual_projection.",
    "text_projection.",
    "logit_scale",
    "text_model.embeddings.position_ids",
)
CLASSES = ("BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipModel")
HEADS: naming.Names = {
    "encoders.image_projection.weight": "vision_proj.weight",
    "encoders.image_projection.bias": "vision_proj.bias",
    "encoders.text_projection.weight": "text_proj.weight",
    "encoders.text_projection.bias": "text_proj.bias",
}
MATCHER: naming.Names = {"matcher.weight": "itm_head.weight", "matcher.bias": "itm_head.bias"}


def read(folder: Path, config: dict[str, Any], state: dict[str, Tensor], model: str) -> Weights:
    """A captioner (image encoder and decoder), a retriever (image encoder, text encoder, projections, matching head) or
    a ``BlipModel`` (both encoders; it pools and projects in a way of its own)."""
    from transformers import BlipConfig

    full = BlipConfig.from_dict(config).to_dict()
    kind, text_config = _kind(state), full["text_config"]
    depth = text_config["num_hidden_layers"]
    image = vit.names("blip", full["vision_config"]["num_hidden_layers"], "vision_model.")
    heads: naming.Names = {}
    if kind == "BlipForConditionalGeneration":
        text = decoder_names(depth)
    elif kind == "BlipForImageTextRetrieval":
        text = bert.names(depth, "text_encoder.", cross=True)
        heads = {**HEADS, **MATCHER} if model == "Blip" else {}
    else:
        text = bert.names(depth, "text_model.", cross=True)
    ignore = UNUSED + (POOLED if kind == "BlipModel" else ())

    def parts(take: Callable[[naming.Names], naming.State]) -> naming.State:
        found = naming.placed(model, take, image=image, text=text)
        here = take(heads)
        return found | here | {f"teacher.{name}": t for name, t in naming.under("encoders.", here).items()}

    found = parts(partial(naming.translate, state)) | naming.unknown(state, image, text, HEADS, MATCHER, ignore=ignore)
    if heads:  # the class has no temperature, but its config may say what it was: 0.07 where it does not
        found["temperature"] = torch.tensor([math.exp(-full["logit_scale_init_value"])])
    text_arguments = naming.text_arguments(text_config, **({"depth": 0} if model == "Vilt" else {}))
    arguments: dict[str, Any] = {
        "image": naming.image_arguments(full["vision_config"], **normalisation(folder)),
        "text": text_arguments,
    }
    if model == "Blip":
        arguments |= {"embed_dim": full["image_text_hidden_size"], "text_pooling": "cls"}
    tokenizer = tokenizer_of(folder)
    return Weights(kind, arguments, found, tuple(parts(naming.empty)), tokenizer.json if tokenizer else None)


def decoder_names(depth: int) -> naming.Names:
    """Our names of a text of ``depth`` layers that writes, and those of the captioning class."""
    text = bert.names(depth, "text_decoder.bert.", attention="decoder_attention", cross=True)
    return text | bert.head_names("text_decoder.cls.predictions.")


def decoder_settings(text: TextTransformer, tokenizer: Tokenizer) -> dict[str, Any]:
    """``text_config`` of a text that writes."""
    return {
        **bert.text_settings(text),
        "bos_token_id": tokenizer.dec,
        "eos_token_id": tokenizer.sep,
        "sep_token_id": tokenizer.sep,
        "pad_token_id": tokenizer.pad,
        "is_decoder": True,
    }


def _kind(state: dict[str, Tensor]) -> str:
    roots = {name.partition(".")[0] for name in state}
    if {"text_encoder", "text_decoder"} <= roots:
        raise ValueError(
            "in BlipForQuestionAnswering encoder and decoder share nothing, ours share all but self-attention: "
            f"choose from {', '.join(CLASSES)}"
        )
    return CLASSES[0] if "text_decoder" in roots else CLASSES[1] if "text_encoder" in roots else CLASSES[2]


def export(module: nn.Module, folder: Path) -> None:
    """Write a Blip as two folders, ``captioning`` and ``retrieval``, each with tokenizer and settings of pictures."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

    encoders: Any = module.encoders
    tokenizer: Any = module.tokenizer
    image, text = encoders.image, encoders.text
    assert isinstance(image, ImageEncoder)
    assert isinstance(text, TextTransformer)
    if encoders.text_pooling != "cls":
        raise ValueError(f"Hugging Face's BLIP takes the text's first token: text_pooling={encoders.text_pooling!r}")
    vision = vit.image_settings(image)
    settings = decoder_settings(text, tokenizer)
    embed_dim, scale = encoders.image_projection.out_features, float(module.state_dict()["temperature"])
    config = {
        "vision_config": vision,
        "text_config": settings,
        "image_text_hidden_size": embed_dim,
        "projection_dim": embed_dim,
        "logit_scale_init_value": -math.log(scale),
    }
    state = {name.removeprefix("encoders."): tensor for name, tensor in module.state_dict().items()}
    pictures = naming.untranslate(
        naming.under("image.", state), vit.names("blip", vision["num_hidden_layers"], "vision_model.")
    )
    texts, depth = naming.under("text.", state), settings["num_hidden_layers"]
    encoder = bert.names(depth, "text_encoder.", cross=True)
    heads = {ours.removeprefix("encoders."): theirs for ours, theirs in (HEADS | MATCHER).items()}
    for name, kind, found in (
        ("captioning", BlipForConditionalGeneration, naming.untranslate(texts, decoder_names(depth))),
        ("retrieval", BlipForImageTextRetrieval, naming.untranslate(texts, encoder) | naming.untranslate(state, heads)),
    ):
        write(kind, BlipConfig(**config), pictures | found, folder / name)
        tokenizer.save(folder / name, max_length=text.max_length)
        write_processor(image, "BlipImageProcessor", folder / name)
