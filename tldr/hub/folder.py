"""A folder of Hugging Face's, beside the names of its weights: the tokenizer, how pictures are normalised, writing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tldr.data.tokenizer import Tokenizer
from tldr.nn.vision import ImageEncoder


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokenizer that lies in a folder, if one does."""
    files = ("tokenizer.json", "vocab.txt", "vocab.json")
    return Tokenizer.pretrained(str(folder)) if any((folder / file).is_file() for file in files) else None


def normalisation(folder: Path, **default: Any) -> dict[str, Any]:
    """``mean`` and ``std`` of the pictures, as the folder says."""
    settings = _preprocessor(folder)
    found = {name: settings.get(f"image_{name}", default.get(name)) for name in ("mean", "std")}
    return {name: [float(v) for v in value] for name, value in found.items() if value is not None}


def resize_mode(folder: Path) -> str:
    """How a CLIP's pictures become squares, as the folder says: by default their centre. Raises ValueError if that does
    not have the size to which the shorter side is resized."""
    settings = _preprocessor(folder)
    size, crop = settings.get("size", {}), settings.get("crop_size", {})
    if not settings.get("do_center_crop", True) or (isinstance(size, dict) and "height" in size):
        return "squash"
    shortest, crop = (next(iter(given.values()), None) if isinstance(given, dict) else given for given in (size, crop))
    if None not in (shortest, crop) and shortest != crop:
        raise ValueError(
            f"{folder / 'preprocessor_config.json'}: pictures are resized to {shortest} pixels and cut to {crop}, "
            "which is not supported here: make the two equal, as in OpenAI's"
        )
    return "shortest"


def _preprocessor(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_processor(encoder: ImageEncoder, kind: str, folder: Path) -> None:
    """Write preprocessor_config.json: how pictures become the encoder's input. ``kind`` is the class there."""
    size = {"height": encoder.image_size, "width": encoder.image_size}
    centre = encoder.resize_mode == "shortest"
    settings = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": encoder.image_size} if centre else size,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": encoder.mean.flatten().tolist(),
        "image_std": encoder.std.flatten().tolist(),
        "do_center_crop": centre,
        **({"crop_size": size} if centre else {}),
    }
    text = json.dumps(settings, indent=2)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


def write(kind: Any, config: Any, state: Mapping[str, Tensor], folder: Path, **options: Any) -> None:
    """Save ``state``, by the names that files have there, as a model of class ``kind``; then open it as others will.

    Raises ValueError where the class misses a tensor or does not know one: that is a fault of ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [kind.__name__]
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}  # sharing no memory
    with quiet():
        config.save_pretrained(str(folder))
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        _, found = kind.from_pretrained(str(folder), output_loading_info=True, **options)
    wrong = {name: sorted(map(str, keys)) for name, keys in found.items() if keys}
    if wrong:
        raise ValueError(f"{kind.__name__} does not open what was written to {folder}: {wrong}")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Hugging Face's warnings about token numbers in small vocabularies, and its progress bar."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
