import torch

from tldr.nn import negatives
from tldr.nn.negatives import Candidates, matching_batch


def candidates(first: int = 0) -> Candidates:
    """Five pairs; 1 and 4 show the same, 0 and 2 say the same."""
    tokens = torch.tensor([[1, 2, 0], [3, 4, 5], [1, 2, 0], [6, 0, 0], [7, 8, 0]])
    image = torch.arange(5.0)[:, None, None].expand(5, 2, 3)
    return Candidates(image, tokens, tokens > 0, torch.tensor([10, 11, 12, 13, 11]), first)


def test_the_hardest_that_does_not_belong(monkeypatch):
    monkeypatch.setattr(
        negatives, "hard_negatives", lambda logits, positive, **_: logits.masked_fill(positive, -9).argmax(1)
    )
    logits = torch.tensor([[9.0, 1, 8, 0, 2], [0, 9, 1, 2, 8], [8, 3, 9, 1, 0], [5, 1, 2, 9, 3], [0, 8, 1, 2, 9]])
    wrong = [4, 3, 1, 0, 3]
    pool = candidates()
    image, tokens, mask = matching_batch(pool, logits, logits)
    own = list(range(5))
    assert image[:, 0, 0].int().tolist() == own + wrong + own
    assert torch.equal(tokens, pool.tokens[own + own + wrong])
    assert torch.equal(mask, tokens > 0)


def test_of_all_only_ones_own_are_asked(monkeypatch):
    """Two of five belong to this process, from the fourth on."""
    seen = []
    monkeypatch.setattr(
        negatives,
        "hard_negatives",
        lambda logits, positive, first, **_: seen.append((positive, first)) or positive.int().argmin(1),
    )
    image, tokens, _ = matching_batch(candidates(first=3), torch.zeros(2, 5), torch.zeros(2, 5))
    assert image[:, 0, 0].int().tolist() == [3, 4, 0, 0, 3, 4]
    assert tokens[:, 0].tolist() == [6, 7, 6, 7, 1, 1]
    expected = torch.tensor([[0, 0, 0, 1, 0], [0, 1, 0, 0, 1]]).bool()
    assert all(torch.equal(positive, expected) and first == 3 for positive, first in seen)


def test_one_process_is_all():
    pool = candidates()
    assert pool.of_all(max_length=9, pad=0) is pool
