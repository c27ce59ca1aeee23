"""Optimal transport between two sets of vectors, by the inexact proximal point method (IPOT, Xie et al. 2018, arXiv
1802.04307), as ViLT aligns words with patches (arXiv 2102.03334, section 3.4; UNITER, arXiv 1909.11740).

Each of a text's n words sends 1/n, each of a picture's m patches receives 1/m, and the cheapest plan says which words
belong to which patches. Pure functions, in float32 also under autocast.

Shapes: B pairs, T words, L patches, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_cost(words: Tensor, patches: Tensor) -> Tensor:
    """(B, T, D), (B, L, D) -> (B, T, L) one minus the cosine: 0 for the same direction, 2 for opposite ones."""
    with torch.autocast(words.device.type, enabled=False):
        return 1 - F.normalize(words.float(), dim=-1) @ F.normalize(patches.float(), dim=-1).mT


def transport_plan(
    cost: Tensor, word_mask: Tensor, patch_mask: Tensor, *, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """(B, T, L) cost -> (B, T, L) plan: how much of each word goes to each patch. No gradient flows through it.

    Summed over patches, it is 1/n for each of the n words of ``word_mask`` (B, T) bool (once the method has converged);
    summed over words, 1/m for each of the m patches of ``patch_mask`` (B, L); 0 elsewhere. ``beta`` (in units of cost)
    is how strongly each step is held to the plan before it (the proximal weight); one Sinkhorn sweep nearly solves a
    step. Without a word or a patch the plan is 0.
    """
    with torch.no_grad(), torch.autocast(cost.device.type, enabled=False):
        both = (word_mask[:, :, None] & patch_mask[:, None, :]).float()  # (B, T, L)
        kernel = both * torch.exp(-cost.float() / beta)
        words = word_mask.float() / word_mask.sum(1, keepdim=True).clamp_min(1)  # (B, T), 1/n each
        patches = patch_mask.float() / patch_mask.sum(1, keepdim=True).clamp_min(1)
        plan, scale = both, patches  # (B, T, L), (B, L)
        for _ in range(iterations):
            kernel_plan = kernel * plan
            sent = words / (kernel_plan @ scale[:, :, None]).squeeze(2).clamp_min(1e-30)  # (B, T)
            scale = patches / (sent[:, None, :] @ kernel_plan).squeeze(1).clamp_min(1e-30)  # (B, L)
            plan = sent[:, :, None] * kernel_plan * scale[:, None, :]
        return plan


def transport_distance(
    words: Tensor, patches: Tensor, word_mask: Tensor, patch_mask: Tensor, *, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """(B, T, D), (B, L, D) -> (B,) the cost of the cheapest plan, 0 where all words lie on patches in equal shares.

    The gradient flows through the costs; the plan is taken as given.
    """
    cost = cosine_cost(words, patches)
    plan = transport_plan(cost, word_mask, patch_mask, beta=beta, iterations=iterations)
    return (cost * plan).sum((1, 2))
