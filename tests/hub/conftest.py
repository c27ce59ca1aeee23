"""Tiny random checkpoints as other projects save them, with vocabularies of a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "heart", "##s", "on", "the", "left"]
TEXTS = ["a red heart", "hearts on the left", "blue"]
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION: dict[str, Any] = {**SIZES, "num_attention_heads": 4, "image_size": 24, "patch_size": 8}


@pytest.fixture(autouse=True)
def _quiet():
    """Hugging Face remarks on token numbers beyond small vocabularies."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(level)


def spread(module: nn.Module, std: float = 0.5) -> Any:
    """Weights so large that every part of a model shows in what it computes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                norm = isinstance(part, nn.LayerNorm) and name == "weight"
                parameter.copy_(1 + noise / 3 if norm else (std if parameter.ndim > 1 else 0.1) * noise)
    return module.eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def vilt_inputs(folder: Path, images: Tensor) -> dict[str, Tensor]:
    """What a processor gives of `TEXTS` and pictures of the model's size, nothing of them padded."""
    text = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    mask = torch.ones(*images.shape[:-3], *images.shape[-2:], dtype=torch.long)
    return {
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask,
        "pixel_values": images,
        "pixel_mask": mask,
    }


def same_weights(a: nn.Module, b: nn.Module) -> None:
    for (name, tensor), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def save_bert_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """BERT's, without BLIP's two tokens."""
    hub = HubTokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    hub.normalizer = normalizers.BertNormalizer(lowercase=True)
    hub.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    hub.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=hub, **special)
    fast.save_pretrained(folder)
    return fast


def save_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte pairs: letters, letters that end a word, a few merges."""
    letters = sorted(set("".join(TEXTS).replace(" ", "")) | set("<|endoftext|>"))
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    fast = CLIPTokenizer(vocab=vocabulary, merges=[("r", "e"), ("re", "d</w>")])  # pyright: ignore[reportArgumentType]
    fast.save_pretrained(folder)
    return fast


@pytest.fixture
def images() -> Tensor:
    """Three normalised pictures of 24 pixels."""
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(2))
