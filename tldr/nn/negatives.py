"""From what ITM draws its negatives: the pairs of this process, or of all (BLIP, arXiv 2201.12086, in fine-tuning for
retrieval on COCO, where a process has few: `models/blip_retrieval.py` of its code).

Shapes: B pairs of this process, P of all, L image tokens, T text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tldr.nn.losses import FLOOR, hard_negatives
from tldr.nn.processes import connected, gather, gather_with_gradient


@dataclass
class Candidates:
    """``image`` (P, L, D), ``tokens`` and ``mask`` (P, T), ``ids`` (P,) of the pictures; this process's own begin at
    row ``first``."""

    image: Tensor
    tokens: Tensor
    mask: Tensor
    ids: Tensor
    first: int = 0

    def of_all(self, *, max_length: int, pad: int) -> Candidates:
        """Those of all processes, in the order of their ranks; gradients reach the image tokens of each. Texts of at
        most ``max_length`` tokens are padded to the longest anywhere."""
        if not connected():
            return self
        space = max_length - self.tokens.shape[1]
        mask = gather(F.pad(self.mask, (0, space)))
        longest = int(mask.sum(1).max())
        tokens = gather(F.pad(self.tokens, (0, space), value=pad))[:, :longest]
        first = dist.get_rank() * len(self.ids)
        return Candidates(gather_with_gradient(self.image), tokens, mask[:, :longest], gather(self.ids), first)


def matching_batch(
    pool: Candidates, text_logits: Tensor, image_logits: Tensor, *, floor: float = FLOOR
) -> tuple[Tensor, Tensor, Tensor]:
    """B right pairs, B texts with a wrong image, B images with a wrong text: (3B, L, D), (3B, T) and the mask.

    The wrong ones are drawn from ``pool`` by `hard_negatives` with this ``floor``, from the scores (B, P) of its images
    for each text and of its texts for each image; never the same picture nor an equal text (else the hardest negative
    would be the caption itself).
    """
    mine = slice(pool.first, pool.first + len(text_logits))
    image, tokens, mask, ids = pool.image[mine], pool.tokens[mine], pool.mask[mine], pool.ids[mine]
    positive = (ids[:, None] == pool.ids) | (tokens[:, None] == pool.tokens).all(2)  # (B, P)
    wrong_image = hard_negatives(text_logits, positive, first=pool.first, floor=floor)  # (B,) for each text
    wrong_text = hard_negatives(image_logits, positive, first=pool.first, floor=floor)
    return (
        torch.cat([image, pool.image[wrong_image], image]),
        torch.cat([tokens, tokens, pool.tokens[wrong_text]]),
        torch.cat([mask, mask, pool.mask[wrong_text]]),
    )
