"""Where the right key comes among all keys: hits and ranks of a table of scores, and tables made by matching pairs.

Equal scores are in no order, and a sort would invent one (a constant embedding then scores what the order of the file
gives it). They are taken in random order, in expectation: a constant embedding scores exactly chance.

Shapes: Q queries (of one chunk), K keys (the gallery), R ranks asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TIE = 1e-6  # scores no further apart are equal: rounding depends on the batch

# Numbers of queries and of keys, (n,) each, to the log-odds (n,) that these belong together.
Match = Callable[[Tensor, Tensor], Tensor]


def rerank(scores: Tensor, rows: Tensor, match: Match, *, k: int) -> Tensor:
    """(Q, K) similarities of the queries numbered ``rows`` -> the same with the log-odds of ``match`` added to each
    query's best ``k``; the others follow behind in their order."""
    best = scores.topk(min(k, scores.shape[1]), 1)
    odds = match(rows.repeat_interleave(best.indices.shape[1]), best.indices.flatten())
    behind = scores.double() - 1e6
    return behind.scatter(1, best.indices, (best.values + odds.view_as(best.values)).double())


def match_all(match: Match, queries: int, keys: int, *, batch_size: int, seen: Callable[[int], object]) -> Tensor:
    """(Q, K) log-odds of every query with every key, on the CPU; ``seen`` is told how many pairs each step took."""
    scores = torch.empty(queries * keys)
    for start in range(0, len(scores), batch_size):
        place = torch.arange(start, min(start + batch_size, len(scores)))
        scores[start : start + len(place)] = match(place // keys, place % keys).float().cpu()
        seen(len(place))
    return scores.view(queries, keys)


def hit_probability(scores: Tensor, own: Tensor, ranks: Sequence[int]) -> Tensor:
    """(Q, K) scores, (Q, K) bool -> (Q, R) how likely one of a query's ``own`` keys is among its first k, for each of R
    ranks k: 0 or 1, unless the best own key ties with others. A score that is not a number beats all own ones.
    """
    better, others, mine = _around(scores, own)
    places = torch.tensor(ranks, device=scores.device) - better[:, None]  # (Q, R) left for those who tie
    # Of others + mine keys in random order, the first j are all others with probability prod (others - i) / (all - i).
    i = torch.arange(max(ranks), device=scores.device)
    others, mine = others.double(), mine.double()
    miss = ((others[:, None] - i) / (others + mine)[:, None].sub(i).clamp_min(1)).clamp_min(0)  # (Q, max k)
    missed = torch.cat([torch.ones_like(miss[:, :1]), miss.cumprod(1)], 1)  # (Q, 1 + max k) after j places
    return 1 - missed.gather(1, places.clamp(0, max(ranks)))


def expected_rank(scores: Tensor, own: Tensor) -> Tensor:
    """(Q, K) scores, (Q, K) bool -> (Q,) the place, from 1, of a query's best ``own`` key, the mean one among equals.
    A score that is not a number beats all own ones."""
    better, others, mine = _around(scores, own)
    nothing = mine == 0  # all own scores are no numbers: the last of all
    return torch.where(nothing, float(scores.shape[1]), 1 + better + others / (mine + 1))


def _around(scores: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Q,) how many keys beat the best own one; how many others equal it; how many own ones do."""
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    tie = (scores - best).abs() <= TIE
    better = ~tie & ~own & ~(scores < best)
    return better.sum(1), (tie & ~own).sum(1), (tie & own).sum(1)
