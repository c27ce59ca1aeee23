from itertools import permutations

import numpy as np
import pytest
import torch

from tldr.metric.rank import expected_rank, hit_probability, match_all


def test_hits_and_ranks_are_those_of_all_orders_of_equal_scores():
    """Against every order of six keys, among scores of three values."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (40, 6), generator=generator).float()
    own = torch.rand(40, 6, generator=generator) < 0.35
    own[torch.arange(40), torch.randint(0, 6, (40,), generator=generator)] = True
    ranks = (1, 2, 4, 6)
    expected, places = [], []
    for row, mine in zip(scores.tolist(), own.tolist(), strict=True):
        found = []
        for order in permutations(range(6)):
            ordered = sorted(order, key=lambda key: -row[key])  # stable: equal scores stay as permuted
            found.append(min(ordered.index(key) for key in range(6) if mine[key]))
        expected.append([np.mean([place < k for place in found]) for k in ranks])
        places.append(1 + np.mean(found))
    torch.testing.assert_close(hit_probability(scores, own, ranks), torch.from_numpy(np.array(expected)))
    torch.testing.assert_close(expected_rank(scores, own).double(), torch.tensor(places, dtype=torch.float64))


def test_a_distance_within_rounding_is_a_tie():
    scores = torch.tensor([[0.5, 0.5 + 1e-7, 0.1], [0.5, 0.5 + 1e-4, 0.1]])
    own = torch.tensor([[True, False, False]]).expand(2, 3)
    assert hit_probability(scores, own, (1, 2)).tolist() == [[0.5, 1], [0, 1]]


def test_what_is_not_a_number_wins_nothing():
    scores = torch.tensor([[0.9, torch.nan, 0.1], [torch.nan, 0.5, 0.1], [torch.nan] * 3])
    own = torch.tensor([[True, False, False]]).expand(3, 3)
    assert hit_probability(scores, own, (1, 2, 3)).tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 1]]
    assert expected_rank(scores, own).tolist() == [2, 3, 3]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_pair_is_matched_once(batch_size):
    table, seen = torch.randn(3, 5), []
    found = match_all(lambda query, key: table[query, key], 3, 5, batch_size=batch_size, seen=seen.append)
    assert torch.equal(found, table)
    assert sum(seen) == 15
    assert max(seen) <= batch_size
