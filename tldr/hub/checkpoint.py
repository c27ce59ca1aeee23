"""Checkpoints in and out: `read` what another project (or another model of ours) has learned, `initialise` a model with
it, `export` ours as folders that ``transformers`` opens.

Each architecture has a file that knows its names. Nothing is silent: a key that nobody knows, one that should be there
and is not, a shape that does not fit are one error that lists them all. No pickled code runs: safetensors, else
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tldr.hub import naming
from tldr.nn.resize import resized

FAMILIES = {  # "model_type" of a config.json: who reads it
    "bert": "tldr.hub.bert",
    "blip": "tldr.hub.blip",
    "clip": "tldr.hub.clip",
    "tldr_captioner": "tldr.hub.captioner",
    "timm": "tldr.hub.vit",  # "architecture" instead
    "vilt": "tldr.hub.vilt",
    "vit": "tldr.hub.vit",
}
EXPORTERS = {  # our class: who writes it
    "Blip": "tldr.hub.blip",
    "Captioner": "tldr.hub.captioner",
    "Clip": "tldr.hub.clip",
    "ImageEncoder": "tldr.hub.vit",
    "Nlvr2": "tldr.hub.heads",
    "TextTransformer": "tldr.hub.bert",
    "Vilt": "tldr.hub.vilt",
    "Vqa": "tldr.hub.heads",
}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")
SETTINGS = ("preprocessor_config.json", "processor_config.json")
ARCHITECTURE = {  # arguments that a checkpoint of ours fixes; those of how a model learns are configured anew
    "image", "text", "quantizer", "embed_dim", "text_pooling", "causal", "loss", "bias",
    "backbone", "fusion", "pictures", "mode", "answers", "num_answers", "shared_decoder",
    "column", "members", "classes", "count",
}  # fmt: skip
OF_THE_DATA = ("queue.", "noise")  # parts that depend on the data it was trained on


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds, in our terms.

    ``arguments`` are those of the model's constructor that the checkpoint fixes (image={...}, text={...}, ...),
    ``state`` its tensors by the model's own names. ``covers``: beginnings of names that a checkpoint of this ``kind``
    must have. ``tokenizer`` is JSON.
    """

    kind: str
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    covers: tuple[str, ...]
    tokenizer: str | None = None


def read(source: str | Path, model: str) -> Weights:
    """The weights that ``source`` has for ``model`` (Blip, Captioner, Clip, Vilt; or ImageEncoder, TextTransformer).

    ``source`` is a Hugging Face id or a folder in its format or timm's; a folder of such folders that `export` wrote;
    or a checkpoint of ours (a file, or a folder that holds model.ckpt).
    """
    path = Path(source)
    if path.is_file() or (path / "model.ckpt").is_file():
        return _read_ours(path if path.is_file() else path / "model.ckpt", model)
    if (path / "open_clip_config.json").is_file() and not (path / "config.json").is_file():
        raise ValueError(f"{path} is in OpenCLIP's own format; the same model in transformers' is read")
    if path.is_dir() and not (path / "config.json").is_file():
        parts = sorted(file.parent for file in path.glob("*/config.json"))
        if not parts:
            raise ValueError(f"{path} holds neither config.json nor model.ckpt: it is no checkpoint")
        return _merge([_read_folder(part, model) for part in parts], path)
    return _read_folder(path if path.is_dir() else _download(str(source)), model)


def _read_folder(folder: Path, model: str) -> Weights:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = config.get("model_type") or ("timm" if "architecture" in config else None)
    if family not in FAMILIES:
        raise ValueError(f"{folder / 'config.json'}: model_type={family!r}; choose from {', '.join(FAMILIES)}")
    return importlib.import_module(FAMILIES[family]).read(folder, config, _load(folder), model)


def _load(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, from one file or from several that an index lists."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        files = [folder / name]
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files = [folder / shard for shard in sorted(shards)]
        if all(file.is_file() for file in files):
            state: dict[str, Tensor] = {}
            for file in files:
                state |= safetensors.torch.load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
            return state
    raise ValueError(f"{folder} holds no weights: neither {' nor '.join(WEIGHTS)}")


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes fail the unpickler in any way
        raise ValueError(f"{file} is no file of tensors (loading runs no pickled code)") from error


def _download(name: str) -> Path:
    """The folder of a Hugging Face id in the cache, fetched if need be (not where HF_HUB_OFFLINE is set)."""
    from transformers.utils.hub import cached_file

    def fetch(file: str) -> Path | None:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None

    refusal = f"{name!r} is neither a folder, a checkpoint nor a reachable Hugging Face id with a config.json"
    try:
        config = fetch("config.json")
    except OSError as error:
        raise ValueError(refusal) from error
    if config is None:
        raise ValueError(refusal)
    for file in (*BESIDE, *SETTINGS):
        fetch(file)
    for file in WEIGHTS:
        index = fetch(f"{file}.index.json")
        if index is not None:
            for shard in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
                fetch(shard)
        if index is not None or fetch(file) is not None:
            break
    return config.parent


def _merge(parts: list[Weights], folder: Path) -> Weights:
    """Several checkpoints of one model. What two of them hold must be the same."""
    whole = parts[0]
    for part in parts[1:]:
        if part.arguments != whole.arguments:
            raise ValueError(f"the parts of {folder} are not of one model: {whole.arguments} and {part.arguments}")
        differ = [n for n in part.state if n in whole.state and not torch.equal(part.state[n], whole.state[n])]
        if differ:
            raise ValueError(f"the parts of {folder} are not of one model: they differ in {', '.join(differ)}")
        state, covers = {**whole.state, **part.state}, tuple(dict.fromkeys((*whole.covers, *part.covers)))
        whole = replace(whole, state=state, covers=covers, tokenizer=whole.tokenizer or part.tokenizer)
    return whole


def _read_ours(file: Path, model: str) -> Weights:
    """A checkpoint of ours: whole, if it is of the same class, else the image encoder and the text."""
    checkpoint = _unpickle(file)
    name = checkpoint.get("tldr_class") if isinstance(checkpoint, dict) else None
    if not isinstance(name, str):
        keys = " ".join(map(str, checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else ()))
        other = " but OpenCLIP's, whose models are read in transformers' format" * ("visual." in keys)
        raise ValueError(f"{file} is not a checkpoint of tldr's{other} (it names no class of tldr.model)")
    name = name.rpartition(".")[2]
    state, arguments = checkpoint["state_dict"], dict(checkpoint["hyper_parameters"])
    tokenizer = arguments.get("tokenizer")
    if isinstance(arguments.get("image"), Mapping):
        arguments["image"] = {**arguments["image"], "pretrained": False}
    if name == model:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(OF_THE_DATA)}
        arguments = {name: value for name, value in arguments.items() if name in ARCHITECTURE}
        covers = tuple({name.partition(".")[0] for name in state})
        return Weights(name, arguments, state, covers, tokenizer)
    if name not in naming.IMAGE:
        raise ValueError(f"{file} is a {name}, whose parts fit no {model}")
    image = text = None
    if model in naming.IMAGE:
        image = naming.under(naming.IMAGE[name], state)
    if model in naming.TEXT and name != "Vilt":  # which has words, but no layers that read them alone
        text = naming.under(naming.TEXT[name], state)
        if name == "Captioner":  # its one role is the decoder's
            text = {key.replace(".attention.", ".decoder_attention."): tensor for key, tensor in text.items()}
    kept = {part for part, found in (("image", image), ("text", text)) if found is not None}
    placed = naming.place(model, image=image, text=text, alike=True)
    arguments = {part: arguments[part] for part in sorted(kept)}
    if model == "Vilt" and text is not None:
        arguments["text"] = {**arguments["text"], "depth": 0}
    return Weights(name, arguments, placed, tuple(placed), tokenizer if text is not None else None)


def initialise(module: nn.Module, weights: Weights) -> list[str]:
    """Copy ``weights`` into ``module``; return the names of its parameters that they do not cover, which are unchanged.

    Positions are made to fit: those of another picture size are interpolated, those of a longer text cut. Raises
    ValueError that lists every key that is unknown, missing, or of another shape.
    """
    own, found = module.state_dict(), resized(weights.state, module)
    wrong = [f"unknown: {name}" for name in found if name not in own]
    wrong += [f"missing: {name}" for name in own if name.startswith(weights.covers) and name not in found]
    for name in own.keys() & found.keys():
        found[name] = _fit(name, found[name], own[name])
        if found[name].shape != own[name].shape:
            wrong.append(f"shape: {name} is {tuple(found[name].shape)} there, {tuple(own[name].shape)} here")
    if wrong:
        listed = "\n  ".join(sorted(wrong))
        raise ValueError(f"the {weights.kind} checkpoint does not fit this {type(module).__name__}:\n  {listed}")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    return [name for name, _ in module.named_parameters() if name not in found]


def _fit(name: str, tensor: Tensor, own: Tensor) -> Tensor:
    """Positions (T, D) of a text, cut to as many as ours."""
    places = name.rpartition(".")[0].endswith("positions") and tensor.shape[1:] == own.shape[1:]
    return tensor[: len(own)] if places else tensor


def export(module: nn.Module, folder: str | Path) -> Path:
    """Write ``folder`` so that ``transformers`` opens it by ``from_pretrained``: safetensors, config, tokenizer.

    BLIP and ViLT, which are several classes there, become two folders in it; a captioner's folder includes its class,
    and needs ``trust_remote_code=True``. Raises ValueError for what has no counterpart there.
    """
    _exporter(module).export(module, Path(folder))
    return Path(folder)


def check_export(module: nn.Module) -> None:
    """Raises the ValueError of `export`, before training, for a model that cannot be exported."""
    try:
        _exporter(module).config_of(module)
    except ValueError as error:
        raise ValueError(f"export: {error}; docs/models.md lists what can be exported") from error


def _exporter(module: nn.Module) -> Any:
    name = type(module).__name__
    if name not in EXPORTERS:
        raise ValueError(f"a {name} has no counterpart in transformers; choose from {', '.join(EXPORTERS)}")
    return importlib.import_module(EXPORTERS[name])
