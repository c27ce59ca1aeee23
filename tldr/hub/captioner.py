"""Captioners, with or without a codebook, as folders that ``transformers`` opens with ``trust_remote_code=True``.

No class of transformers has a codebook, or a null picture to measure alignment against: the folder includes a class of
its own (`tldr.hub.modeling_captioner`), which does not need this package.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tldr.hub import blip, modeling_captioner, naming, vit
from tldr.hub.checkpoint import Weights
from tldr.hub.folder import normalisation, tokenizer_of, write, write_processor
from tldr.hub.modeling_captioner import CaptionerConfig, CaptionerForConditionalGeneration
from tldr.nn.quantizer import Quantizer
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder

CODE = Path(modeling_captioner.__file__)
NULL = "null_image"
CODEBOOK = "vision_model.codebook"
USAGE = "vision_model.codebook_usage"
INSIDE = "quantizer.vq._codebook."


def read(folder: Path, config: dict[str, Any], state: dict[str, Tensor], model: str) -> Weights:
    """All of it for a Captioner; for others the image encoder and the decoder, where they have such parts."""
    full = CaptionerConfig.from_dict(config).to_dict()
    vision, text_config = full["vision_config"], full["text_config"]
    image = vit.names("blip", vision["num_hidden_layers"], "vision_model.")
    text = blip.decoder_names(text_config["num_hidden_layers"])
    found = naming.placed(model, partial(naming.translate, state), image=image, text=text)
    covers = tuple(naming.placed(model, naming.empty, image=image, text=text))
    arguments: dict[str, Any] = {
        "image": naming.image_arguments(vision, **normalisation(folder)),
        "text": naming.text_arguments(text_config, **({"depth": 0} if model == "Vilt" else {})),
    }
    if model == "Captioner":
        size = vision.get("codebook_size", 0)
        arguments["quantizer"] = {"codebook_size": size} if size else None
        found |= naming.translate(state, {"null": NULL}) | _codebook(state)
        covers += ("null", *(("quantizer.",) if size else ()))
    unknown = naming.unknown(state, image, text, ignore=(*blip.UNUSED, NULL, CODEBOOK))
    tokenizer = tokenizer_of(folder)
    return Weights("captioner", arguments, found | unknown, covers, tokenizer.json if tokenizer else None)


def _codebook(state: dict[str, Tensor]) -> naming.State:
    """The state of our `Quantizer` from codes (K, D) and how many tokens of a batch chose each (K,)."""
    if CODEBOOK not in state or USAGE not in state:
        return {}
    codes, usage = state[CODEBOOK], state[USAGE]
    return {
        f"{INSIDE}embed": codes[None],
        f"{INSIDE}embed_avg": (codes * usage[:, None])[None],
        f"{INSIDE}cluster_size": usage[None],
        f"{INSIDE}initted": torch.tensor(True),
        "quantizer.active": torch.tensor(True),
    }


def config_of(module: nn.Module) -> Any:
    """The `CaptionerConfig` of a Captioner. Raises ValueError for what has no counterpart."""
    captioner: Any = module
    image, text, quantizer = captioner.image_encoder, captioner.decoder, captioner.quantizer
    assert isinstance(image, ImageEncoder)
    assert isinstance(text, TextTransformer)
    vision = {**vit.image_settings(image), "codebook_size": quantizer.codebook_size if quantizer is not None else 0}
    kind: Any = CaptionerConfig
    return kind(
        vision_config=vision,
        text_config=blip.decoder_settings(text, captioner.tokenizer),
        prompt=captioner.prompt,
        prompt_ids=captioner._tokenize([""])[0][0, 1:-1].tolist(),  # between [DEC] and the end
        auto_map={
            "AutoConfig": f"{CODE.stem}.{CaptionerConfig.__name__}",
            "AutoModelForImageTextToText": f"{CODE.stem}.{CaptionerForConditionalGeneration.__name__}",
        },
    )


def export(module: nn.Module, folder: Path) -> None:
    """Write a Captioner as `CaptionerForConditionalGeneration`, with tokenizer and settings of pictures. Raises
    ValueError where its codebook has not begun."""
    captioner: Any = module
    text, quantizer = captioner.decoder, captioner.quantizer
    assert quantizer is None or isinstance(quantizer, Quantizer)
    if quantizer is not None and not quantizer.active:
        raise ValueError(f"this codebook joins after {quantizer.after} steps, and has not: export a finished run")
    config, state = config_of(module), module.state_dict()
    pictures = vit.names("blip", config.vision_config.num_hidden_layers, "vision_model.")
    texts = {
        name.replace(".attention.", ".decoder_attention."): t for name, t in naming.under("decoder.", state).items()
    }
    found = naming.untranslate(naming.under("image_encoder.", state), pictures) | {NULL: state["null"]}
    found |= naming.untranslate(texts, blip.decoder_names(len(text.layers)))
    if quantizer is not None:
        found |= {CODEBOOK: state[f"{INSIDE}embed"][0], USAGE: state[f"{INSIDE}cluster_size"][0]}
    write(CaptionerForConditionalGeneration, config, found, folder)
    shutil.copy(CODE, folder)
    captioner.tokenizer.save(folder, max_length=text.max_length)
    write_processor(captioner.image_encoder, "BlipImageProcessor", folder)
