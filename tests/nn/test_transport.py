import pytest
import torch
import torch.nn.functional as F

from tldr.nn.transport import cosine_cost, transport_distance, transport_plan

B, T, L, D = 3, 5, 7, 16


@pytest.fixture
def masks():
    words, patches = torch.ones(B, T, dtype=torch.bool), torch.ones(B, L, dtype=torch.bool)
    words[0, 3:], words[1, 0], patches[2, 4:] = False, False, False
    return words, patches


def test_cosine_cost():
    a, b = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 3.0], [-5.0, 0.0]]])
    torch.testing.assert_close(cosine_cost(a, b), torch.tensor([[[0.0, 1.0, 2.0]]]))


def test_the_plan_has_its_marginals(masks):
    words, patches = masks
    cost = torch.rand(B, T, L, generator=torch.Generator().manual_seed(0)) * 2
    plan = transport_plan(cost, words, patches, iterations=400)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(2), words / words.sum(1, keepdim=True), atol=1e-3, rtol=0)
    torch.testing.assert_close(plan.sum(1), patches / patches.sum(1, keepdim=True), atol=1e-5, rtol=0)


def test_the_plan_finds_the_obvious_matching():
    """As many words as patches, each alike one: the permutation, and nothing costs anything."""
    words = torch.eye(6)[None]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    everything = torch.ones(1, 6, dtype=torch.bool)
    plan = transport_plan(cosine_cost(words, words[:, order]), everything, everything)
    expected = F.one_hot(order, 6).T / 6
    torch.testing.assert_close(plan[0], expected.float(), atol=1e-3, rtol=0)
    distance = transport_distance(words, words[:, order], everything, everything)
    assert float(distance) == pytest.approx(0, abs=1e-3)


def test_the_plan_is_the_cheapest():
    """Two words and two patches: moved straight it costs 0.1, crosswise 1.05, and IPOT, unlike Sinkhorn at this beta,
    does not blur them."""
    cost, everything = torch.tensor([[[0.1, 1.0], [1.1, 0.1]]]), torch.ones(1, 2, dtype=torch.bool)
    plan = transport_plan(cost, everything, everything, beta=0.5, iterations=50)
    assert float((plan * cost).sum()) == pytest.approx(0.1, abs=1e-4)
    blurred = transport_plan(cost, everything, everything, beta=0.5, iterations=1)
    assert float((blurred * cost).sum()) > 0.2


def test_padding_moves_nothing(masks):
    generator = torch.Generator().manual_seed(1)
    words, patches = torch.randn(B, T, D, generator=generator), torch.randn(B, L, D, generator=generator)
    before = transport_distance(words, patches, *masks)
    words[~masks[0]], patches[~masks[1]] = 99.0, -99.0
    torch.testing.assert_close(transport_distance(words, patches, *masks), before)
    alone = transport_distance(words[:1, :3], patches[:1], masks[0][:1, :3], masks[1][:1])
    torch.testing.assert_close(alone, before[:1])


def test_no_word_no_distance(masks):
    words, patches = masks
    words[0] = False
    distance = transport_distance(torch.randn(B, T, D), torch.randn(B, L, D), words, patches)
    assert float(distance[0]) == 0
    assert distance.isfinite().all()


def test_the_gradient_brings_words_to_their_patches(masks):
    generator = torch.Generator().manual_seed(2)
    words = torch.randn(B, T, D, generator=generator, requires_grad=True)
    patches = torch.randn(B, L, D, generator=generator)
    distances = []
    for _ in range(30):
        distance = transport_distance(words, patches, *masks).sum()
        (gradient,) = torch.autograd.grad(distance, words)
        assert not gradient[~masks[0]].any()
        words = (words - 2 * gradient).detach().requires_grad_()
        distances.append(float(distance.detach()))
    assert distances[-1] < 0.8 * distances[0]
