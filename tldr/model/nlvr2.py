"""NLVR2 (Suhr et al., ACL 2019, arXiv 1811.00491): is a sentence true of two pictures? And NLVR: of one.

    pair  the joint features of (sentence, left picture) and (sentence, right picture), side by side, through an MLP:
          ViLT's way (arXiv 2102.03334, section 4.2), for any backbone that has joint features
    twin  the sentence is read once, looking at both pictures in every layer through two cross-attentions, both copied
          from the pre-trained one: BLIP's way (arXiv 2201.12086, section 5.4), but for its head, which has ReLU and no
          norm

Of one picture the joint feature alone is judged.

Shapes: B sentences, J width of the joint feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.data.loading import Batch
from tldr.data.truth import truths
from tldr.model.base import Joint, Model, describe, open_backbone
from tldr.nn.freeze import freeze_unreached

FUSIONS = ("pair", "twin")


@runtime_checkable
class Twin(Protocol):
    """What a backbone must offer for ``fusion=twin``."""

    def see_two(self) -> None:
        """Replace each cross-attention by two."""
        ...

    def joint_two(self, first: Tensor, second: Tensor, captions: Sequence[str]) -> Tensor:
        """Twice (B, 3, H, W) and B captions -> (B, J)."""
        ...


class Nlvr2(Model):
    """``backbone`` is one of our checkpoints (a file or its folder; from a head's, the backbone that it has tuned is
    taken), or a description by `describe`, with random weights; ``image`` overrides arguments of its image encoder
    (image_size, drop_path). ``pictures`` is 2, or 1 for NLVR. ``optimizer.head_lr_scale`` is for the MLP."""

    columns = ("label", "image_2")
    learns_tokenizer = False
    head_names = ("head",)

    def __init__(
        self,
        *,
        backbone: str | Path | Mapping[str, Any],
        optimizer: Mapping[str, Any],
        image: Mapping[str, Any] | None = None,
        fusion: str = "pair",
        pictures: int = 2,
    ) -> None:
        super().__init__(optimizer=optimizer)
        if fusion not in FUSIONS:
            raise ValueError(f"fusion={fusion!r}; choose from {', '.join(FUSIONS)}")
        if pictures not in (1, 2):
            raise ValueError(f"pictures={pictures}; a sentence is about 1 or 2")
        model = open_backbone(backbone, image or {})
        name = type(model).__name__
        if not isinstance(model, Joint):
            raise ValueError(f"backbone: {name} has no joint feature of picture and text")
        self.save_hyperparameters(
            {"backbone": describe(model), "optimizer": dict(optimizer), "fusion": fusion, "pictures": pictures}
        )
        self.backbone, self.fusion, self.pictures = model, fusion, pictures
        self.image_size, self.resize_mode, self.compiled = model.image_size, model.resize_mode, model.compiled
        if pictures == 1:
            self.columns = ("label",)  # NLVR's files name one picture
        twin = fusion == "twin" and pictures == 2
        if twin:
            if not isinstance(model, Twin):
                raise ValueError(f"fusion=twin doubles cross-attentions, and {name} has none; choose pair")
            model.see_two()
        width = model.joint_width * (1 if twin else pictures)
        self.head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 2))
        freeze_unreached(self, _trial)
        self.train()

    def scores(self, batch: Batch) -> Tensor:
        """(B, 2) scores of *false* and *true*."""
        images, sentences, model = batch["images"], batch["captions"], self.backbone
        assert isinstance(model, Joint)
        if self.pictures == 1:
            return self.head(model.joint(images, sentences)).float()
        if "images_2" not in batch:
            raise ValueError("these pairs have no second picture (column image_2); for NLVR set model.pictures=1")
        if self.fusion == "twin":
            assert isinstance(model, Twin)
            return self.head(model.joint_two(images, batch["images_2"], sentences)).float()
        seen = [model.joint(images, sentences), model.joint(batch["images_2"], sentences, place=1)]
        return self.head(torch.cat(seen, 1)).float()

    def judge(self, batch: Batch) -> Tensor:
        """(B,) log-odds that the sentence is true."""
        scores = self.scores(batch)
        return scores[:, 1] - scores[:, 0]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``nlvr2``: cross-entropy with the column ``label``."""
        labels = torch.tensor(truths(batch["columns"]["label"], "label"), device=self.device)
        return {"nlvr2": F.cross_entropy(self.scores(batch), labels.long())}


def _trial(model: Nlvr2) -> Tensor:
    """The scores of black pictures: which parameters they reach is all that matters."""
    images = torch.zeros(2, 3, model.image_size, model.image_size, dtype=torch.uint8)
    batch: Any = {"images": images, "images_2": images, "captions": ["a", "b"]}
    return model.scores(batch).sum()
