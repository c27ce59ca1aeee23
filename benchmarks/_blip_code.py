"""salesforce/BLIP's own pre-training (BSD-3-Clause; a clone that the user names), made to run beside ours.

Its files run as they stand. What they would download (a tokenizer, BERT, DeiT) is ours instead, and what they import
that libraries of today no longer have, or that this project does without (fairscale), has a stand-in here.

Shapes: B pairs, L image tokens.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tldr.hub import bert, blip, naming
from tldr.model.blip import Blip

UNNAMED = ("position_ids", "queue_ptr", "predictions.decoder.weight", "predictions.decoder.bias")  # counters, ties


class Pretrained(nn.Module):
    """What BERT's classes ask of the ``PreTrainedModel`` of transformers 4.15, and no more."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(cls, _: str, *, config: Any, **options: Any) -> Pretrained:
        """Without the download; a head over words shares their embedding."""
        model: Any = cls(config, **options)
        if hasattr(model, "cls"):
            model.cls.predictions.decoder.weight = model.bert.embeddings.word_embeddings.weight
        return model

    def init_weights(self) -> None:
        """Weights are given later."""

    def resize_token_embeddings(self, _: int) -> None:
        """They have the right size."""

    def get_head_mask(self, _: Any, layers: int) -> list[None]:
        """No head is left out."""
        return [None] * layers

    def invert_attention_mask(self, mask: Tensor) -> Tensor:
        """(B, L) 1 for what is seen -> what is added to scores."""
        return (1 - mask[:, None, None].to(self.dtype)) * torch.finfo(self.dtype).min


class Config(types.SimpleNamespace):
    """``BertConfig`` with the settings that their code reads."""

    @classmethod
    def from_json_file(cls, file: str) -> Config:
        """As theirs."""
        return cls(**json.loads(Path(file).read_text(encoding="utf-8")))


class Encoding(dict):
    """``input_ids`` and ``attention_mask`` (B, 30)."""

    __getattr__ = dict.__getitem__

    def to(self, device: Any) -> Encoding:
        """On ``device``."""
        return Encoding({name: value.to(device) for name, value in self.items()})


class Padding:
    """Our tokenizer by the names of theirs."""

    def __init__(self, ours: Any) -> None:
        self.ours = ours
        self.enc_token_id, self.bos_token_id, self.pad_token_id = ours.enc, ours.dec, ours.pad

    def __len__(self) -> int:
        return len(self.ours)

    def __call__(self, captions: list[str], *, max_length: int, **_: Any) -> Encoding:
        tokens, mask = self.ours(captions, max_length=max_length)
        space = (0, max_length - tokens.shape[1])
        ids = nn.functional.pad(tokens, space, value=self.pad_token_id)
        return Encoding(input_ids=ids, attention_mask=nn.functional.pad(mask.long(), space))


def modules_of(source: Path) -> tuple[Any, Any]:
    """Their ``models.blip_pretrain`` and ``models.vit``. Raises SystemExit where ``source`` is no clone."""
    if not (source / "models" / "blip_pretrain.py").is_file():
        clone = "git clone https://github.com/salesforce/BLIP"
        raise SystemExit(f"--source {source} has no models/blip_pretrain.py: {clone}, and name its folder")
    import transformers.modeling_utils as utils

    checkpointing: Any = types.ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
    checkpointing.checkpoint_wrapper = lambda module: module
    parents = ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint")
    stand_ins: dict[str, Any] = {name: types.ModuleType(name) for name in parents}
    stand_ins[checkpointing.__name__] = checkpointing
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(source.resolve()))
    try:
        with (
            patch.multiple(
                utils,
                create=True,
                PreTrainedModel=Pretrained,
                apply_chunking_to_forward=lambda layer, _size, _dim, *inputs: layer(*inputs),
                find_pruneable_heads_and_indices=None,
                prune_linear_layer=None,
            ),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", FutureWarning)  # timm's old names
            return importlib.import_module("models.blip_pretrain"), importlib.import_module("models.vit")
    finally:
        sys.path.remove(str(source.resolve()))
        for name in stand_ins:
            del sys.modules[name]


def theirs_of(ours: Blip, modules: tuple[Any, Any]) -> Any:
    """``BLIP_Pretrain`` with the sizes, weights, teacher and queue of ``ours``."""
    code, vit = modules
    image: Any = ours.encoders.image
    depth, heads = len(image.vit.blocks), image.vit.blocks[0].attn.num_heads
    settings = bert.text_settings(ours.encoders.text) | {
        "encoder_width": image.width, "add_cross_attention": True, "pad_token_id": ours.tokenizer.pad,
        "chunk_size_feed_forward": 0, "use_return_dict": True, "use_cache": False, "output_attentions": False,
        "output_hidden_states": False,
    }  # fmt: skip

    def create_vit(_: str, size: int, *__: Any) -> tuple[Any, int]:
        return vit.VisionTransformer(img_size=size, embed_dim=image.width, depth=depth, num_heads=heads), image.width

    code.create_vit, code.init_tokenizer, code.BertConfig = create_vit, lambda: Padding(ours.tokenizer), Config
    code.concat_all_gather = lambda keys: keys  # of one process
    with TemporaryDirectory() as folder, redirect_stdout(None):  # it prints what is tied
        file = Path(folder) / "bert.json"
        file.write_text(json.dumps(settings), encoding="utf-8")
        sizes = {"image_size": ours.image_size, "embed_dim": ours.queue.image.shape[1], "queue_size": ours.queue.size}
        made = code.BLIP_Pretrain(med_config=str(file), vit="", momentum=ours.momentum, **sizes)
    state = by_their_names(ours.state_dict(), depth) | teacher_by_their_names(ours, depth)
    state |= {"image_queue": ours.queue.image.T, "text_queue": ours.queue.text.T, "temp": ours.temperature.detach()[0]}
    found = made.load_state_dict(state, strict=False)
    strange = [*found.unexpected_keys, *(name for name in found.missing_keys if not name.endswith(UNNAMED))]
    if strange:
        raise SystemExit(f"this is not the BLIP that is known here: {', '.join(strange)}")
    return made


def by_their_names(ours: Mapping[str, Tensor], depth: int) -> naming.State:
    """Weights of a Blip, or their gradients; what encoder and decoder share by both names."""
    pictures = "encoders.image.vit."
    found = {f"visual_encoder.{name}": value for name, value in naming.under(pictures, ours).items()}
    reads, writes = bert.names(depth, "text_encoder.", cross=True), blip.decoder_names(depth)
    for table in (reads, writes, blip.HEADS, blip.MATCHER):
        named = {name if name in ours else f"encoders.text.{name}": other for name, other in table.items()}
        found |= naming.untranslate(ours, {name: other for name, other in named.items() if name in ours})
    return found


def teacher_by_their_names(ours: Blip, depth: int) -> naming.State:
    """Its weights: each part's name ends in ``_m``, and there is no decoder."""
    weights = {f"encoders.{name}": value for name, value in ours.teacher.state_dict().items()}
    found = by_their_names(weights, depth).items()
    return {name.replace(".", "_m.", 1): value for name, value in found if not name.startswith("text_decoder.")}
