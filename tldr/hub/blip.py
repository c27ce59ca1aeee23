"""BLIP (Li et al. 2022, arXiv 2201.12086) in Hugging Face's names.

There each task is a class with weights of its own: ``BlipForConditionalGeneration`` has the decoder,
``BlipForImageTextRetrieval`` the encoder, the projections and the matching head. Here one text transformer plays both
roles and shares all but self-attention, as BLIP is pre-trained: the two folders that `export` writes hold the shared
weights twice, and `read` finds them equal. Published checkpoints of two tasks were fine-tuned apart: read one.

Hugging Face's matching, and its answering of questions (`tldr.hub.heads`), do not put ``[ENC]`` at the head of the text
as BLIP does (and ours): who compares sets ``input_ids[:, 0]``. The captioner of ours reads patches without the class
token, as TL;DR's codebook does: it is a class of its own (`tldr.hub.captioner`).
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


def config_of(module: nn.Module) -> Any:
    """The ``BlipConfig`` of a Blip. Raises ValueError for what has no counterpart."""
    from transformers import BlipConfig

    encoders: Any = module.encoders
    if encoders.text_pooling != "cls":
        raise ValueError(f"Hugging Face's BLIP takes the text's first token: text_pooling={encoders.text_pooling!r}")
    embed_dim, scale = encoders.image_projection.out_features, float(module.state_dict()["temperature"])
    return BlipConfig(
        **towers_of(module),
        image_text_hidden_size=embed_dim,
        projection_dim=embed_dim,
        logit_scale_init_value=-math.log(scale),
    )


def towers_of(module: nn.Module) -> dict[str, Any]:
    """``vision_config`` and ``text_config`` of a Blip. Raises ValueError for what has no counterpart."""
    encoders: Any = module.encoders
    tokenizer: Any = module.tokenizer
    assert isinstance(encoders.image, ImageEncoder)
    assert isinstance(encoders.text, TextTransformer)
    vision = vit.image_settings(encoders.image)
    return {"vision_config": vision, "text_config": decoder_settings(encoders.text, tokenizer)}


def image_state(module: nn.Module) -> naming.State:
    """The image encoder of a Blip by the names there."""
    encoders: Any = module.encoders
    pictures = vit.names("blip", len(encoders.image.vit.blocks), "vision_model.")
    return naming.untranslate(encoders.image.state_dict(), pictures)


def encoder_state(text: TextTransformer) -> naming.State:
    """A text that reads, with a picture, by the names there."""
    return naming.untranslate(text.state_dict(), bert.names(len(text.layers), "text_encoder.", cross=True))


def decoder_state(text: TextTransformer) -> naming.State:
    """A text that writes by the names there."""
    return naming.untranslate(text.state_dict(), decoder_names(len(text.layers)))


def export(module: nn.Module, folder: Path) -> None:
    """Write a Blip as two folders, ``captioning`` and ``retrieval``, each with tokenizer and settings of pictures."""
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    encoders: Any = module.encoders
    config, heads = config_of(module), naming.untranslate(module.state_dict(), HEADS | MATCHER)
    for name, kind, found in (
        ("captioning", BlipForConditionalGeneration, decoder_state(encoders.text)),
        ("retrieval", BlipForImageTextRetrieval, encoder_state(encoders.text) | heads),
    ):
        save(module, kind, config, found, folder / name)


def save(module: nn.Module, kind: Any, config: Any, state: naming.State, folder: Path) -> None:
    """Write a Blip's image encoder and the ``state`` of other parts as a class ``kind``, with tokenizer and settings of
    pictures."""
    encoders: Any = module.encoders
    tokenizer: Any = module.tokenizer
    write(kind, config, image_state(module) | state, folder)
    tokenizer.save(folder, max_length=encoders.text.max_length)
    write_processor(encoders.image, "BlipImageProcessor", folder)
