import math

import pytest
import torch
import torch.nn.functional as F

from tldr.nn.losses import (
    distilled_targets,
    hard_negatives,
    info_nce,
    lm_loss,
    similarity,
    soft_cross_entropy,
    token_nll,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def words(generator):
    """Scores of 3 texts of 4 words over 5, of which the last has 1 real word and the second 3."""
    logits = torch.randn(3, 4, 5, generator=generator)
    targets = torch.randint(0, 5, (3, 4), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    return logits, targets, mask


def naive_nll(logits, targets, mask):
    """(text, place) -> -log p of the word there, for real places, by the definition of softmax."""
    nll = {}
    for b, t in mask.nonzero().tolist():
        scores = [math.exp(s) for s in logits[b, t].tolist()]
        nll[b, t] = -math.log(scores[int(targets[b, t])] / sum(scores))
    return nll


def test_token_nll_sums_the_real_words_of_each_text(words):
    nll = naive_nll(*words)
    expected = [sum(value for (b, _), value in nll.items() if b == row) for row in range(3)]
    torch.testing.assert_close(token_nll(*words), torch.tensor(expected))


def test_lm_loss_is_the_mean_over_all_real_words(words):
    nll = naive_nll(*words)
    torch.testing.assert_close(lm_loss(*words), torch.tensor(sum(nll.values()) / len(nll)))


def test_lm_loss_smooths_labels_over_the_vocabulary(words):
    logits, targets, mask = words
    log_p = logits.log_softmax(-1)
    per_word = 0.9 * -log_p.gather(2, targets[..., None])[..., 0] + 0.1 * -log_p.mean(2)
    torch.testing.assert_close(lm_loss(*words, label_smoothing=0.1), per_word[mask].mean())


def test_pads_carry_no_loss_and_no_gradient(words):
    logits, targets, mask = words
    logits = logits.requires_grad_()
    lm_loss(logits, targets, mask, label_smoothing=0.1).backward()
    assert logits.grad is not None
    assert logits.grad[~mask].eq(0).all()
    assert logits.grad[mask].ne(0).all()


def test_info_nce_by_its_definition(generator):
    image, text = (F.normalize(torch.randn(4, 3, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(14.0)
    losses = []
    for queries, keys in ((image, text), (text, image)):
        for i in range(4):
            scores = [math.exp(14 * float(queries[i] @ keys[j])) for j in range(4)]
            losses.append(-math.log(scores[i] / sum(scores)))
    torch.testing.assert_close(info_nce(image, text, scale, image, text, 0), torch.tensor(sum(losses) / 8))


def test_info_nce_of_two_processes_is_that_of_their_union(generator):
    image, text = (F.normalize(torch.randn(6, 3, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(14.0)
    parts = [info_nce(image[s], text[s], scale, image, text, r) for r, s in enumerate((slice(0, 3), slice(3, 6)))]
    torch.testing.assert_close(torch.stack(parts).mean(), info_nce(image, text, scale, image, text, 0))


def test_similarity_keeps_float32_under_autocast(generator):
    x = F.normalize(torch.randn(8, 64, generator=generator), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16  # else this test tests nothing
        inside = similarity(x, x)
    torch.testing.assert_close(inside, x @ x.T)


def test_soft_cross_entropy_of_one_hot_targets_is_cross_entropy(generator):
    logits = torch.randn(4, 7, generator=generator)
    targets = torch.tensor([3, 0, 6, 3])
    torch.testing.assert_close(
        soft_cross_entropy(logits, F.one_hot(targets, 7).float()), F.cross_entropy(logits, targets)
    )


def test_soft_cross_entropy_is_least_at_its_targets(generator):
    logits = torch.randn(4, 7, generator=generator).requires_grad_()
    soft_cross_entropy(logits, logits.detach().softmax(1)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(4, 7))


def test_distilled_targets_mix_the_teacher_with_the_positives(generator):
    teacher = torch.randn(2, 4, generator=generator).requires_grad_()
    positive = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1]]).bool()
    targets = distilled_targets(teacher, positive, 0.4)
    judged = teacher.exp() / teacher.exp().sum(1, keepdim=True)
    hard = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0, 0.5]])
    torch.testing.assert_close(targets, (0.4 * judged + 0.6 * hard).detach())
    assert not targets.requires_grad  # else the student could please itself by moving its teacher
    torch.testing.assert_close(distilled_targets(teacher, positive, 0.0), hard)


def test_hard_negatives_are_never_positives(generator):
    logits = 10 * torch.eye(6) + torch.randn(6, 6, generator=generator)  # positives score by far the highest
    ids = torch.tensor([0, 0, 1, 2, 2, 2])
    positive = ids[:, None] == ids
    for _ in range(200):
        drawn = hard_negatives(logits, positive, generator)
        assert (ids != ids[drawn]).all()


def test_hard_negatives_are_drawn_by_softmax(generator):
    logits = torch.tensor([[9.0, 2.0, 1.0, 0.0]]).expand(4000, 4)
    positive = torch.tensor([[True, False, False, False]]).expand(4000, 4)
    share = torch.bincount(hard_negatives(logits, positive, generator), minlength=4)[1:] / 4000
    weights = logits[0].softmax(0)[1:] + 1e-4
    torch.testing.assert_close(share, weights / weights.sum(), atol=0.03, rtol=0)


def test_without_a_floor_the_softmax_alone_decides(generator):
    """Of the negatives, also where that of all would have left them nothing (a positive at a temperature of 0.001)."""
    logits = torch.tensor([[1000.0, 2.0, 1.0, -20.0]]).expand(4000, 4)
    positive = torch.tensor([[True, False, False, False]]).expand(4000, 4)
    share = torch.bincount(hard_negatives(logits, positive, generator, floor=0.0), minlength=4) / 4000
    expected = torch.tensor([0, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0])
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)
    evenly = torch.bincount(hard_negatives(logits, positive, generator), minlength=4)[1:] / 4000
    torch.testing.assert_close(evenly, torch.full((3,), 1 / 3), atol=0.03, rtol=0)  # the floor is all they have


@pytest.mark.parametrize("floor", [1e-4, 0.0])
def test_a_row_without_negatives_draws_another_row(generator, floor):
    positive = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1]]).bool()
    for _ in range(50):
        first, second, third = hard_negatives(torch.zeros(3, 3), positive, generator, floor=floor).tolist()
        assert first in (1, 2)
        assert (second, third) == (2, 1)


def test_of_all_processes_pairs_ones_own_is_no_negative(generator):
    """Where all belong together any other is drawn: of six columns the rows' own are the third and the fourth."""
    logits = torch.randn(2, 6, generator=generator)
    positive = torch.ones(2, 6).bool()
    drawn = torch.stack([hard_negatives(logits, positive, generator, first=2) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == {0, 1, 3, 4, 5}
    assert set(drawn[:, 1].tolist()) == {0, 1, 2, 4, 5}
