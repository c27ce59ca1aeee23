"""The heads that fine-tuning puts on a backbone, in Hugging Face's names: with it they are one class there.

    Vqa    mode=classify on a Vilt   ``ViltForQuestionAnswering``: the answers are its labels
           mode=rank on a Blip       ``BlipForQuestionAnswering``: it writes an answer, where ours chooses from a list,
                                     which is ``answers`` in its config
    Nlvr2  fusion=pair on a Vilt     ``ViltForImagesAndTextClassification``, of one picture or of two

``transformers`` has no class for other heads: none on the joint feature of another backbone, none for BLIP's two
cross-attentions. A folder of ViLT's is read as the backbone that the head has tuned; one of BLIP's, whose decoder was
trained apart, is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tldr.hub import blip, naming, vilt

CLASSES = {  # our head, how it works, its backbone: the class there
    ("Vqa", "mode=classify", "Vilt"): "ViltForQuestionAnswering",
    ("Vqa", "mode=rank", "Blip"): "BlipForQuestionAnswering",
    ("Nlvr2", "fusion=pair", "Vilt"): "ViltForImagesAndTextClassification",
}
TRUTHS = ("False", "True")  # as the published ViLT for NLVR2 calls them


def config_of(module: nn.Module) -> Any:
    """The config of a Vqa or Nlvr2 and its backbone. Raises ValueError for what has no counterpart."""
    from transformers import BlipConfig

    owner: Any = module
    name = _class_of(module)
    if name == "BlipForQuestionAnswering":
        kind: Any = BlipConfig
        return kind(**blip.towers_of(owner.backbone), answers=list(owner.answers))
    two = {"num_images": owner.pictures} if name == "ViltForImagesAndTextClassification" else {}
    labels = dict(enumerate(TRUTHS if two else owner.answers))
    return vilt.config_of(
        owner.backbone, id2label=labels, label2id={label: number for number, label in labels.items()}, **two
    )


def export(module: nn.Module, folder: Path) -> None:
    """Write a Vqa or Nlvr2 and its backbone as one class, with tokenizer and settings of pictures. Raises ValueError
    for what has no counterpart."""
    import transformers

    owner: Any = module
    name, config = _class_of(module), config_of(module)
    kind = getattr(transformers, name)
    if name == "BlipForQuestionAnswering":
        text = owner.backbone.encoders.text
        found = blip.encoder_state(text) | blip.decoder_state(owner.decoder or text)
        blip.save(owner.backbone, kind, config, found, folder)
    else:
        head = {f"classifier.{key}": tensor for key, tensor in naming.under("head.", module.state_dict()).items()}
        vilt.save(owner.backbone, kind, config, head, folder)


def _class_of(module: nn.Module) -> str:
    """The name of the class there. Raises ValueError where there is none."""
    owner: Any = module
    head, backbone = type(module).__name__, type(owner.backbone).__name__
    way = f"mode={owner.mode}" if head == "Vqa" else f"fusion={owner.fusion}"
    if head == "Nlvr2" and owner.pictures == 1:  # and so nothing to fuse
        way = "fusion=pair"
    if (head, way, backbone) not in CLASSES:
        there = ", ".join(f"{h} with {w} on a {b} ({known})" for (h, w, b), known in CLASSES.items())
        raise ValueError(f"a {head} with {way} on a {backbone} has no counterpart in transformers; it has {there}")
    if head == "Vqa" and not owner.answers:
        raise ValueError("this Vqa has not learned its answers, which are the labels there: export a trained one")
    return CLASSES[head, way, backbone]
