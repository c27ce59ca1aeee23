import pytest
import torch
from torch import Tensor

from tldr.nn.trajectory import (
    ConvEncoder,
    Dual,
    Weights,
    contrastive,
    graded,
    low_rank,
    matching_loss,
    step,
    unroll,
    weighted_bce,
)

M, E = 6, 5
ALWAYS, OF_LORS = ("images", "texts", "rates"), ("diagonal", "left", "right")


@pytest.fixture
def nets() -> Dual:
    nets = Dual.build(image_size=8, width=4, depth=2, text_width=E, dim=6)
    for network in nets:
        network.net.double()
    return nets


def draw(nets: Dual, seed: int) -> Weights:
    return Weights(*(one.double() for one in nets.draw(torch.Generator().manual_seed(seed))))


@pytest.fixture
def given(nets) -> tuple[Weights, Weights, dict[str, Tensor]]:
    """Two ends of a trajectory, and what is learned, in float64."""
    generator = torch.Generator().manual_seed(0)
    start = draw(nets, 1)
    target = Weights(*(one + 0.05 * torch.randn(one.shape, generator=generator).double() for one in start))
    learned = {
        "images": torch.randn(M, 3, 8, 8, generator=generator).double(),
        "texts": torch.randn(M, E, generator=generator).double(),
        "rates": torch.tensor([0.1, 0.2]).double(),
        "diagonal": torch.ones(M).double(),
        "left": torch.randn(M, 2, generator=generator).double(),
        "right": 0.1 * torch.randn(M, 2, generator=generator).double(),
    }
    return start, target, learned


def mismatch(nets: Dual, start: Weights, target: Weights, learned: dict[str, Tensor], *, lors: bool) -> Tensor:
    batches = []
    for rows in (torch.tensor([0, 2, 3, 5]), torch.tensor([4, 1, 2, 0]), torch.tensor([3, 5, 1, 4])):
        if lors:
            diagonal, left, right = (learned[name][rows] for name in OF_LORS)
            batches.append((rows, graded_exact(low_rank(diagonal, left, right, 3.0))))
        else:
            batches.append((rows, exact))
    end = unroll(nets, start, learned["images"], learned["texts"], Weights(*learned["rates"]), batches)
    return matching_loss(end, start, target)


def exact(image: Tensor, text: Tensor) -> Tensor:
    """InfoNCE in float64; the library's is in float32, too rough for finite differences."""
    scores = image @ text.T / 0.3
    return -(scores.log_softmax(1).diagonal().mean() + scores.log_softmax(0).diagonal().mean()) / 2


def graded_exact(target: Tensor):
    return lambda image, text: weighted_bce(image @ text.T / 0.3, target)


@pytest.mark.parametrize(
    ("name", "lors"), [*((name, False) for name in ALWAYS), *((name, True) for name in (*ALWAYS, *OF_LORS))]
)
def test_gradient_through_the_students_steps_is_that_of_finite_differences(nets, given, name, lors):
    start, target, learned = given
    learned[name].requires_grad_()
    mismatch(nets, start, target, learned, lors=lors).backward()
    slope = learned[name].grad
    assert slope is not None
    assert slope.abs().max() > 0
    learned[name].requires_grad_(False)
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(5)).double()
    ends = []
    for side in (1e-5, -1e-5):
        moved = {**learned, name: learned[name] + side * direction}
        ends.append(mismatch(nets, start, target, moved, lors=lors).item())
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((slope * direction).sum().item(), rel=1e-4, abs=1e-9)


def test_matching_loss_is_measured_in_the_experts_own_way(nets):
    start, target = draw(nets, 0), draw(nets, 1)
    half = Weights(*((a + b) / 2 for a, b in zip(start, target, strict=True)))
    assert matching_loss(target, start, target) == 0
    assert matching_loss(start, start, target) == pytest.approx(2)
    assert matching_loss(half, start, target) == pytest.approx(0.5)
    assert matching_loss(Weights(target.image, start.text), start, target) == pytest.approx(1)


def test_unrolled_steps_are_those_of_an_optimizer(nets, given):
    start, _, learned = given
    rows = torch.arange(M)
    end = unroll(nets, start, learned["images"], learned["texts"], Weights(*learned["rates"]), [(rows, exact)] * 3)
    weights = [one.clone().requires_grad_() for one in start]
    groups = [{"params": [one], "lr": float(rate)} for one, rate in zip(weights, learned["rates"], strict=True)]
    optimizer = torch.optim.SGD(groups)
    for _ in range(3):
        optimizer.zero_grad()
        exact(nets.image(weights[0], learned["images"]), nets.text(weights[1], learned["texts"])).backward()
        optimizer.step()
    for one, other in zip(end, weights, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_weights_as_a_vector_are_the_networks_own(nets):
    net = ConvEncoder(image_size=8, width=4, depth=2, dim=6).double()
    vector = torch.cat([weight.detach().flatten() for weight in net.parameters()])
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(nets.image(vector, images), torch.nn.functional.normalize(net(images), dim=-1))
    assert nets.image.size == len(vector)
    again, other = draw(nets, 3), draw(nets, 4)
    assert torch.equal(again.image, draw(nets, 3).image)
    assert not torch.equal(again.image, other.image)


def test_steps_lower_the_loss():
    nets = Dual.build(image_size=8, width=4, depth=2, text_width=E, dim=6)
    generator = torch.Generator().manual_seed(0)
    weights = nets.draw(generator)
    images, texts = torch.randn(M, 3, 8, 8, generator=generator), torch.randn(M, E, generator=generator)
    rates = Weights(torch.tensor(0.1), torch.tensor(0.1))
    for loss in (contrastive(0.2), graded(torch.eye(M), 0.2)):
        moved, values = weights, []
        for _ in range(40):
            moved, value = step(nets, moved, images, texts, rates, loss, graph=False)
            values.append(value.item())
        assert values[-1] < 0.7 * values[0]
        assert not moved.image.requires_grad


def test_similarity_begins_as_identity_and_has_low_rank():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(M, 2, generator=generator), torch.randn(M, 2, generator=generator)
    assert torch.equal(low_rank(torch.ones(M), left, torch.zeros(M, 2), 3.0), torch.eye(M))
    learned = low_rank(torch.ones(M), left, right, 3.0) - torch.eye(M)
    assert torch.linalg.matrix_rank(learned) == 2
    assert learned[1, 4] == pytest.approx(float(3 / 2 * (left[1] @ right[4])), rel=1e-5)


def test_weighted_bce_weighs_the_few_like_the_many():
    """Of the identity: the mean of the own pairs' losses and that of the others', halved; by hand."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0], [-1.0, 0.0, 3.0]])
    chance = logits.sigmoid()
    own = -chance.diagonal().log().mean()
    others = -(1 - chance)[~torch.eye(3, dtype=torch.bool)].log().mean()
    assert weighted_bce(logits, torch.eye(3)) == pytest.approx(float((own + others) / 2), rel=1e-5)
    soft = torch.tensor([[0.8, 0.3], [0.1, 0.9]])
    by_hand = -(soft * chance[:2, :2].log() + (1 - soft) * (1 - chance[:2, :2]).log())
    expected = (by_hand.diagonal().mean() + (by_hand[0, 1] + by_hand[1, 0]) / 2) / 2
    assert weighted_bce(logits[:2, :2], soft) == pytest.approx(float(expected), rel=1e-5)
    assert torch.isfinite(weighted_bce(torch.tensor([[3.0]]), torch.ones(1, 1)))  # no others


def test_pictures_too_small_are_refused():
    with pytest.raises(ValueError, match="image_size=4 is too small to be halved depth=3 times"):
        ConvEncoder(image_size=4, width=4, depth=3, dim=6)
