"""Answering by ranking, as BLIP on VQA (Li et al. 2022, arXiv 2201.12086, section 5.3): a decoder reads the states of a
question (which has seen the picture) through cross-attention, and the likeliest of a list of candidates is chosen.

Scoring a list of thousands is expensive: as in BLIP's code, only the candidates with the likeliest first words are
scored in full. BLIP's score includes the label smoothing of its training; here it is the plain log-likelihood.

Shapes: B questions, A candidate answers, S question tokens, T answer tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tldr.nn.losses import token_nll
from tldr.nn.text import TextTransformer

_CHUNK = 1024  # answers decoded at a time


def answer_nll(
    decoder: TextTransformer,
    answers: tuple[Tensor, Tensor],
    states: Tensor,
    mask: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(B,) negative log-likelihood of each answer, of which ``answers`` are the tokens (B, T) and their mask, given
    question ``states`` (B, S, D) with their ``mask`` (B, S)."""
    tokens, real = answers

    def nll(rows: Tensor, seen: int) -> Tensor:
        longest = int(real[rows].sum(1).max())
        text = tokens[rows, :longest]
        logits = decoder.logits(decoder(text[:, :-1], image=states[rows, :seen], causal=True))
        return token_nll(logits, text[:, 1:], real[rows, 1:longest], label_smoothing=label_smoothing)

    return _by_equal_length(mask.sum(1), nll)


@torch.no_grad()
def rank(
    decoder: TextTransformer, candidates: tuple[Tensor, Tensor], states: Tensor, mask: Tensor, *, top_k: int
) -> Tensor:
    """(B,) which of the A ``candidates`` (A, T) each question's ``states`` (B, S, D) make likeliest, among the
    ``top_k`` with the likeliest first word."""
    tokens, real = candidates

    def first_word(rows: Tensor, seen: int) -> Tensor:
        return decoder.logits(decoder(tokens[:1, :1].expand(len(rows), -1), image=states[rows, :seen], causal=True))

    first = _by_equal_length(mask.sum(1), first_word)[:, 0, :].float()  # (B, V)
    chosen = first[:, tokens[:, 1]].topk(min(top_k, len(tokens)), 1).indices  # (B, k)
    question = torch.arange(len(states), device=states.device)[:, None].expand_as(chosen).flatten()
    scores = torch.cat(
        [
            answer_nll(decoder, (tokens[some], real[some]), states[rows], mask[rows])
            for rows, some in zip(question.split(_CHUNK), chosen.flatten().split(_CHUNK), strict=True)
        ]
    ).view_as(chosen)
    return chosen.gather(1, scores.argmin(1, keepdim=True)).squeeze(1)


def _by_equal_length(lengths: Tensor, compute: Callable[[Tensor, int], Tensor]) -> Tensor:
    """(B, ...) what ``compute(rows, length)`` gives for the rows of each length, in the order of the batch: the
    decoder's cross-attention takes no mask, and so no pads."""
    order = lengths.argsort(stable=True)
    values, counts = lengths[order].unique_consecutive(return_counts=True)
    groups = order.split(counts.tolist())
    found = torch.cat([compute(rows, length) for rows, length in zip(groups, values.tolist(), strict=True)])
    return found[order.argsort()]
