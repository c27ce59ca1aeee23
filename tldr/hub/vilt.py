"""ViLT (Kim et al. 2021, arXiv 2102.03334) in Hugging Face's names.

Represented differently there, with the same results:

    token types   BERT's; a single text has the same one throughout, which is added to the positions here
    second image  a type of its own there, a difference to the first image's here; a checkpoint that knows only one
                  image gives the second the same type, as the published fine-tuning for NLVR2 does at first
    matching      ``ViltForImageAndTextRetrieval`` has one score, ours has two, of which the loss determines only the
                  difference. Their score is this difference, the log-odds: when read, it becomes the score of *match*,
                  with 0 for *no match*; when written, it is the difference of our two. `match` gives the same either
                  way, but the head's rows may differ

The heads of VQA and NLVR2 are written (`tldr.hub.heads`), not read: fine-tuning puts new ones on the pooled feature.
Pictures are square and of the model's size (a mask of ones there, whose patches Hugging Face then shuffles).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tldr.hub import bert, naming, vit
from tldr.hub.checkpoint import Weights
from tldr.hub.folder import normalisation, tokenizer_of, write, write_processor
from tldr.nn.joint import IMAGE, SECOND, TEXT, JointTransformer

HALF = (0.5, 0.5, 0.5)  # mean and spread of the pictures where no file says otherwise
TEXTS = "embeddings.text_embeddings."
TYPES = "embeddings.token_type_embeddings.weight"
SEGMENTS = f"{TEXTS}token_type_embeddings.weight"  # BERT's token types
KINDS = ("weight", "bias")
UNUSED = ("classifier.", "mlm_score.decoder.weight")  # of VQA and NLVR2; tied to the words


def names(depth: int, theirs: str) -> naming.Names:
    """Our names of what every ViLT has, but for the types, and Hugging Face's, which begin with ``theirs``."""
    image, text = naming.IMAGE["Vilt"], naming.TEXT["Vilt"]
    found: naming.Names = {f"{image}{name}": other for name, other in vit.names("vit", depth, theirs).items()}
    found[f"{text}words.weight"] = f"{theirs}{TEXTS}word_embeddings.weight"
    found[f"{text}positions.weight"] = f"{theirs}{TEXTS}position_embeddings.weight"
    found |= naming.expand({"norm": f"{TEXTS}LayerNorm"}, text, theirs)
    return found | naming.expand({"network.pooler": "pooler.dense"}, "", theirs)


def head_names() -> naming.Names:
    """Our names of the head that guesses words, and Hugging Face's."""
    text = naming.TEXT["Vilt"]
    return naming.expand(bert.HEAD, text, "mlm_score.") | {f"{text}head_bias": "mlm_score.decoder.bias"}


def read(folder: Path, config: dict[str, Any], state: dict[str, Tensor], model: str) -> Weights:
    """A ``ViltModel``, bare or within one of the classes that have heads on it."""
    from transformers import ViltConfig

    if model != "Vilt":
        raise ValueError(f"a ViLT is one transformer for words and patches: it fits a Vilt, and no part of a {model}")
    full = ViltConfig.from_dict(config).to_dict()
    if not full["qkv_bias"]:
        raise ValueError("this ViLT has no biases in its attention (qkv_bias), ours does")
    state = dict(state)
    if "mlm_score.bias" in state:  # where the first versions had it
        state.setdefault("mlm_score.decoder.bias", state.pop("mlm_score.bias"))
        state.pop("mlm_score.bias", None)
    prefix = "vilt." if any(name.startswith("vilt.") for name in state) else ""
    segments, types = state.pop(f"{prefix}{SEGMENTS}", None), state.pop(f"{prefix}{TYPES}", None)
    place = f"{prefix}{TEXTS}position_embeddings.weight"
    if segments is not None and place in state:
        state[place] = state[place] + segments[0]
    table = names(full["num_hidden_layers"], prefix)
    if any(name.startswith("mlm_score.") for name in state):
        table |= head_names()
    found = naming.translate(state, table)
    covers = [*table, "network.types"]
    if types is not None:
        second = types[SECOND] if len(types) > SECOND else types[IMAGE]
        found["network.types"] = torch.stack([types[TEXT], types[IMAGE], second - types[IMAGE]])
    if "rank_output.weight" in state:
        for kind in KINDS:
            rank = state.pop(f"rank_output.{kind}")
            found[f"matcher.{kind}"] = torch.cat([torch.zeros_like(rank), rank])
        covers.append("matcher.")
    ids = (f"{prefix}{TEXTS}position_ids", f"{prefix}{TEXTS}token_type_ids")
    found |= naming.unknown(state, table, ignore=UNUSED + ids)
    tokenizer = tokenizer_of(folder)
    if tokenizer is not None:  # BLIP's two tokens, which ViLT never sees, begin as [CLS]
        for name in (f"{naming.TEXT['Vilt']}words.weight", f"{naming.TEXT['Vilt']}head_bias"):
            if name in found and len(found[name]) < len(tokenizer):
                new = found[name][tokenizer.cls].expand(len(tokenizer) - len(found[name]), *found[name].shape[1:])
                found[name] = torch.cat([found[name], new])
    arguments = {
        "image": naming.image_arguments(full, **normalisation(folder, mean=HALF, std=HALF)),
        "text": naming.text_arguments(full, depth=0),
    }
    return Weights("ViLT", arguments, found, tuple(covers), tokenizer.json if tokenizer else None)


def config_of(module: nn.Module, **more: Any) -> Any:
    """The ``ViltConfig`` of a Vilt, with what a head has ``more``. Raises ValueError for what has no counterpart."""
    from transformers import ViltConfig

    owner: Any = module
    network, tokenizer = owner.network, owner.tokenizer
    assert isinstance(network, JointTransformer)
    image, text = network.image, network.text
    settings = vit.image_settings(image)
    epsilons = {getattr(norm, "eps", None) for norm in (text.norm, text.head[2])} | {settings["layer_norm_eps"]}
    if len(epsilons) > 1:
        raise ValueError(
            f"in transformers, a ViLT has one layer_norm_eps, but ours has {epsilons}: set text.norm_eps to the image's"
        )
    if settings["hidden_act"] != "gelu":
        raise ValueError(f"to be exported, the blocks must use gelu, as the head does, not {settings['hidden_act']}")
    return ViltConfig(
        **settings,
        vocab_size=text.words.num_embeddings,
        max_position_embeddings=text.max_length,
        modality_type_vocab_size=3,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad,
        hidden_dropout_prob=text.drop.p,
        **more,
    )


def export(module: nn.Module, folder: Path) -> None:
    """Write a Vilt as two folders: ``mlm``, a ``ViltForMaskedLM``, and ``retrieval``, a
    ``ViltForImageAndTextRetrieval``. Either opens as a ``ViltModel``. Raises ValueError for what has no counterpart."""
    from transformers import ViltForImageAndTextRetrieval, ViltForMaskedLM

    config, state = config_of(module), module.state_dict()
    rank = {f"rank_output.{kind}": state[f"matcher.{kind}"][1:] - state[f"matcher.{kind}"][:1] for kind in KINDS}
    guess = naming.untranslate(state, head_names())
    for name, kind, head in (("mlm", ViltForMaskedLM, guess), ("retrieval", ViltForImageAndTextRetrieval, rank)):
        save(module, kind, config, head, folder / name)


def save(module: nn.Module, kind: Any, config: Any, head: naming.State, folder: Path) -> None:
    """Write a Vilt's transformer with a ``head`` as a class ``kind``, with tokenizer and settings of pictures."""
    owner: Any = module
    network, state = owner.network, module.state_dict()
    types = state["network.types"]
    shared = naming.untranslate(state, names(config.num_hidden_layers, "vilt."))
    shared[f"vilt.{TYPES}"] = torch.stack([types[TEXT], types[IMAGE], types[IMAGE] + types[SECOND]])
    shared[f"vilt.{SEGMENTS}"] = torch.zeros(1, network.width)
    write(kind, config, shared | head, folder)
    owner.tokenizer.save(folder, max_length=network.text.max_length)
    write_processor(network.image, "ViTImageProcessor", folder)  # ViLT's own knows no squares
