"""BERT (Devlin et al. 2019, arXiv 1810.04805) in Hugging Face's names, and those of BLIP's text, which follow it.

Ours has no token types: the first, which a single text has throughout, is added to the positions, and the sums are the
same. A published BERT lacks BLIP's two special tokens: they begin as [CLS].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tldr.hub import naming
from tldr.hub.checkpoint import Weights
from tldr.hub.folder import tokenizer_of, write
from tldr.nn.text import Attention, Layer, TextTransformer

ATTENTION = {
    "query": "self.query",
    "key": "self.key",
    "value": "self.value",
    "out": "output.dense",
    "norm": "output.LayerNorm",
}
HEAD = {"head.0": "transform.dense", "head.2": "transform.LayerNorm"}
UNUSED = (
    "pooler.",
    "bert.pooler.",
    "cls.seq_relationship.",
    "cls.predictions.decoder.",
    "bert.embeddings.position_ids",
)


def names(depth: int, theirs: str, *, attention: str = "attention", cross: bool = False) -> naming.Names:
    """Our names of a text of ``depth`` layers and Hugging Face's, which begin with ``theirs``.

    ``attention`` is the role of its self-attention, ``cross`` says whether it looks at pictures.
    """
    found: naming.Names = {
        "words.weight": f"{theirs}embeddings.word_embeddings.weight",
        "positions.weight": f"{theirs}embeddings.position_embeddings.weight",
    }
    found |= naming.expand({"norm": "embeddings.LayerNorm"}, "", theirs)
    parts = {attention: "attention", **({"cross_attention": "crossattention"} if cross else {})}
    for i in range(depth):
        here, there = f"layers.{i}.", f"{theirs}encoder.layer.{i}."
        for ours, other in parts.items():
            found |= naming.expand(ATTENTION, f"{here}{ours}.", f"{there}{other}.")
        found |= naming.expand(
            {"inner": "intermediate.dense", "outer": "output.dense", "norm": "output.LayerNorm"}, here, there
        )
    return found


def head_names(theirs: str) -> naming.Names:
    """Our names of the language-modelling head and Hugging Face's, which begin with ``theirs``."""
    return naming.expand(HEAD, "", theirs) | {"head_bias": f"{theirs}bias"}


def read(folder: Path, config: dict[str, Any], state: dict[str, Tensor], model: str) -> Weights:
    """A BERT with or without its heads; of these the language-modelling head is used."""
    from transformers import BertConfig

    full = BertConfig.from_dict(config).to_dict()
    if full.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError("only BERT's absolute positions are known here")
    state = {_modern(name): tensor for name, tensor in state.items()}
    prefix = "bert." if any(name.startswith("bert.") for name in state) else ""
    types = state.pop(f"{prefix}embeddings.token_type_embeddings.weight", None)
    place = f"{prefix}embeddings.position_embeddings.weight"
    if types is not None and place in state:
        state[place] = state[place] + types[0]
    table = names(full["num_hidden_layers"], prefix)
    if any(name.startswith("cls.predictions.") for name in state):
        table |= head_names("cls.predictions.")
    text = naming.translate(state, table)
    tokenizer = tokenizer_of(folder)
    if tokenizer is not None:
        for name in ("words.weight", "head_bias"):
            if name in text:
                new = text[name][tokenizer.cls].expand(len(tokenizer) - len(text[name]), *text[name].shape[1:])
                text[name] = torch.cat([text[name], new])
    found = naming.place(model, text=text, alike=True) | naming.unknown(state, table, ignore=UNUSED)
    arguments = naming.text_arguments(full, **({"depth": 0} if model == "Vilt" else {}))
    covers = tuple(naming.place(model, text=naming.empty(table), alike=True))
    return Weights("BERT", {"text": arguments}, found, covers, tokenizer.json if tokenizer else None)


def _modern(name: str) -> str:
    """The first checkpoints call a norm's weight and bias gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def text_settings(text: TextTransformer) -> dict[str, Any]:
    """The settings of a text transformer as BERT's configs name them. Raises ValueError where it is not like BERT."""
    layer = text.layers[0] if len(text.layers) else None
    if not isinstance(layer, Layer) or not isinstance(text.norm, nn.LayerNorm) or layer.pre_norm:
        raise ValueError(
            "only post-norm text (text.pre_norm=false) with layers and a norm over the embeddings is like BERT's"
        )
    if layer.activation != "gelu":
        raise ValueError(f"to be exported, the layers must use gelu, as BERT's head does, not {layer.activation}")
    assert isinstance(layer.attention, Attention)
    return {
        "vocab_size": text.words.num_embeddings,
        "hidden_size": text.width,
        "num_hidden_layers": len(text.layers),
        "num_attention_heads": layer.attention.heads,
        "intermediate_size": layer.inner.out_features,
        "max_position_embeddings": text.max_length,
        "layer_norm_eps": text.norm.eps,
        "hidden_act": layer.activation,
        "hidden_dropout_prob": layer.drop.p,
        "attention_probs_dropout_prob": layer.attention.dropout,
    }


def config_of(module: TextTransformer) -> Any:
    """The ``BertConfig`` of a text transformer. Raises ValueError where it is not like BERT."""
    from transformers import BertConfig

    return BertConfig(**text_settings(module))


def export(module: TextTransformer, folder: Path) -> None:
    """Write a text transformer as a ``BertForMaskedLM``: its encoder's role, without pictures."""
    from transformers import BertForMaskedLM

    config = config_of(module)
    found = naming.untranslate(
        module.state_dict(), names(config.num_hidden_layers, "bert.") | head_names("cls.predictions.")
    )
    found["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(2, module.width)
    write(BertForMaskedLM, config, found, folder)
