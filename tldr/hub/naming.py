"""How checkpoints name their parameters, and where parts of one model belong in another.

A table says for each of our names what the other project calls it, or the several tensors that ours stacks (queries,
keys and values in one matrix). The same table serves both directions. A model is made of parts: an image encoder, by
the names of `ImageEncoder`, and a text transformer, by those of `TextTransformer`; `place` puts them where a model has
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Names = dict[str, str | tuple[str, ...]]  # ours: theirs
State = dict[str, Tensor]

IMAGE = {"Blip": "encoders.image.", "Captioner": "image_encoder.", "Clip": "image_encoder.", "Vilt": "network.image."}
TEXT = {"Blip": "encoders.text.", "Captioner": "decoder.", "Clip": "text_encoder.", "Vilt": "network.text."}
IMAGE["ImageEncoder"] = TEXT["TextTransformer"] = ""  # the networks by themselves
ACTIVATIONS = ("gelu", "quick_gelu")


def expand(table: Mapping[str, str | tuple[str, ...]], ours: str = "", theirs: str = "") -> Names:
    """A table of modules -> one of their weights and biases, with a prefix on either side."""
    found: Names = {}
    for name, other in table.items():
        for kind in ("weight", "bias"):
            names = tuple(f"{theirs}{part}.{kind}" for part in _parts(other))
            found[f"{ours}{name}.{kind}"] = names[0] if len(names) == 1 else names
    return found


def translate(state: Mapping[str, Tensor], names: Names) -> State:
    """Their state -> ours, for the names of the table; missing ones are left out, and `initialise` reports them."""
    found: State = {}
    for name, theirs in names.items():
        parts = _parts(theirs)
        if all(part in state for part in parts):
            found[name] = state[parts[0]] if len(parts) == 1 else torch.cat([state[part] for part in parts])
    return found


def unknown(state: Mapping[str, Tensor], *tables: Names, ignore: Iterable[str] = ()) -> State:
    """The part of their state that no table names and no prefix in ``ignore`` excuses: `initialise` reports it."""
    named = {part for names in tables for theirs in names.values() for part in _parts(theirs)}
    excused = tuple(ignore)
    return {name: t for name, t in state.items() if name not in named and not name.startswith(excused)}


def empty(names: Names) -> State:
    """A tensor without numbers for each of our names: to see where `place` would put them."""
    return dict.fromkeys(names, torch.empty(0))


def untranslate(state: Mapping[str, Tensor], names: Names) -> State:
    """Our state -> theirs, for the names of the table."""
    found: State = {}
    for name, theirs in names.items():
        parts = _parts(theirs)
        tensors = [state[name]] if len(parts) == 1 else state[name].chunk(len(parts))
        found |= dict(zip(parts, tensors, strict=True))
    return found


def _parts(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The entries of ``state`` whose names begin with ``prefix``, which is removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def place(
    model: str,
    *,
    image: Mapping[str, Tensor] | None = None,
    text: Mapping[str, Tensor] | None = None,
    alike: bool = False,
) -> State:
    """Parts under their own names -> the state of ``model`` (a class's name) under its names.

    A text's layers have ``attention`` (it was an encoder), ``decoder_attention`` (a decoder) or both. ``alike``: a
    missing decoder starts as a copy of the encoder, as both of BLIP's start from BERT. A Captioner always takes what
    there is. BLIP's teacher is a copy.
    """
    found: State = {}
    if image is not None:
        found |= {f"{_where(IMAGE, model, 'image encoder')}{name}": tensor for name, tensor in image.items()}
    if text is not None:
        found |= {f"{_where(TEXT, model, 'text')}{name}": t for name, t in _in_role(model, text, alike).items()}
    if model == "Blip":
        teacher = {f"teacher.{name}": tensor for name, tensor in under("encoders.", found).items()}
        found |= teacher
    return found


def placed(model: str, take: Callable[[Names], State], *, image: Names, text: Names) -> State:
    """What ``take`` finds for the names of both parts, `place`d: those parts that ``model`` has."""
    return place(model, image=take(image) if model in IMAGE else None, text=take(text) if model in TEXT else None)


def _where(places: Mapping[str, str], model: str, part: str) -> str:
    if model not in places:
        raise ValueError(f"{model} has no {part}; choose from {', '.join(places)}")
    return places[model]


def _in_role(model: str, text: Mapping[str, Tensor], alike: bool) -> State:
    encoder = {name: tensor for name, tensor in text.items() if ".attention." in name}
    decoder = {name: tensor for name, tensor in text.items() if ".decoder_attention." in name}
    cross = {name for name in text if ".cross_attention." in name}
    shared = {name: tensor for name, tensor in text.items() if name not in {*encoder, *decoder, *cross}}
    if model == "Vilt":  # its layers are the image encoder's
        return {name: tensor for name, tensor in shared.items() if not name.startswith("layers.")}
    if model in ("Clip", "TextTransformer"):
        return shared | encoder
    writer = dict(decoder)
    if not decoder and (alike or model == "Captioner"):
        writer = {name.replace(".attention.", ".decoder_attention."): tensor for name, tensor in encoder.items()}
    seen = {name: text[name] for name in cross}
    if model == "Captioner":
        return shared | seen | {name.replace(".decoder_", "."): tensor for name, tensor in writer.items()}
    return shared | seen | encoder | writer


def activation(name: str) -> str:
    """Hugging Face's name of an activation, if we have it."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the checkpoint's hidden_act={name!r} is none of {', '.join(ACTIVATIONS)}")
    return name


def image_arguments(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The arguments of `ImageEncoder` for a vision config of Hugging Face's."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    ratio = inner / width
    return {
        "backbone": "vit",
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "width": width,
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_ratio": ratio if int(width * ratio) == inner else (inner + 0.5) / width,
        "norm_eps": config["layer_norm_eps"],
        "activation": activation(config["hidden_act"]),
        **more,
    }


def text_arguments(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The arguments of `TextTransformer` for a text config of Hugging Face's."""
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_width": config["intermediate_size"],
        "max_length": config["max_position_embeddings"],
        "norm_eps": config["layer_norm_eps"],
        "activation": activation(config["hidden_act"]),
        **more,
    }
