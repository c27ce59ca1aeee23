"""Which words a masked language model has to guess, which pairs a matching model has to refuse; pure functions.

A caption's words are masked whole (ViLT, Kim et al. 2021, arXiv 2102.03334, section 3.4): of a word in three pieces,
two would give away the third, and nobody would look at the picture.

Shapes: B texts, T tokens of the longest, V' tokens that are no special ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tldr.nn.losses import hard_negatives

MASKED, REPLACED = 0.8, 0.1  # of the chosen tokens, BERT's shares; the rest stay as they are


def choose_words(
    words: Tensor, share: float, *, whole: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """(B, T) word numbers -> (B, T) bool: the tokens of a random ``share`` of each text's words, rounded, at least one.

    ``words`` has the number of each token's word, the same for all pieces of a word, and is negative where there is no
    word (special tokens, padding): never chosen. ``whole=False`` takes every piece for a word of its own.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of words to choose must be above 0 and at most 1, not {share}")
    real, length = words >= 0, words.shape[1]
    if not whole:
        words = torch.where(real, torch.arange(length, device=words.device), words)
    there = torch.zeros(len(words), length + 1, dtype=torch.bool, device=words.device)
    there = there.scatter(1, torch.where(real, words, length), True)[:, :-1]  # (B, T): is there a word of this number
    drawn = torch.rand(there.shape, generator=generator, device=words.device).masked_fill(~there, 2)
    places = drawn.argsort(1).argsort(1)  # (B, T) the place of each word in a random order, absent ones last
    count = (share * there.sum(1, keepdim=True)).round().clamp_min(1)
    chosen = (places < count) & there
    return chosen.gather(1, words.clamp_min(0)) & real


def corrupt(
    tokens: Tensor,
    chosen: Tensor,
    *,
    mask_token: int,
    vocabulary: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, T) tokens -> what the model reads instead: of the ``chosen`` (B, T), 80 % are ``mask_token``, 10 % drawn from
    ``vocabulary`` (V',), 10 % as they were (BERT, Devlin et al. 2018, arXiv 1810.04805)."""
    fate = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    drawn = torch.randint(len(vocabulary), tokens.shape, generator=generator, device=tokens.device)
    read = torch.where(chosen & (fate < MASKED), mask_token, tokens)
    return torch.where(chosen & (fate >= MASKED) & (fate < MASKED + REPLACED), vocabulary[drawn], read)


def swap_pictures(positive: Tensor, share: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """(B,) the row whose picture each of B texts gets, and (B,) bool whether it is a right one.

    ``share`` of the texts, rounded down, get another pair's picture, drawn uniformly from those that are not
    ``positive`` (B, B), True where text and picture belong together. A text for which all are keeps its own.
    """
    own = torch.arange(len(positive), device=positive.device)
    order = torch.rand(len(positive), generator=generator, device=positive.device).argsort()
    swapped = (order.argsort() < int(share * len(positive))) & ~positive.all(1)
    if swapped.any():
        other = hard_negatives(torch.zeros_like(positive, dtype=torch.float32), positive, generator)
        own = torch.where(swapped, other, own)
    return own, ~swapped


def draw_others(positive: Tensor, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """(B, R) for each of B rows, the columns of R others, drawn uniformly without replacement from those that are not
    ``positive`` (B, B); and (B, R) bool, False where a row has run out of them. R is ``count``, or less if no row has
    so many."""
    most = int((~positive).sum(1).max())
    drawn = torch.rand(positive.shape, generator=generator, device=positive.device).masked_fill(positive, 2)
    others = drawn.argsort(1)[:, : min(count, most)]  # positives behind all others
    return others, ~positive.gather(1, others)
