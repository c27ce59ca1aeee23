"""The gradient of unrolled steps, and what is written of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tldr.nn.distillation import NETWORKS, AlexCifarNet, Distilled, LeNet, Steps, accuracy, step, train, unroll, xavier


@pytest.fixture
def net() -> nn.Module:
    """Without kinks, so that finite differences hold."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()


@pytest.fixture
def given(net) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights to begin with, 2 batches of 3 pictures, their labels, rates of 3 passes, and real ones."""
    generator = torch.Generator().manual_seed(1)
    images, real = (torch.randn(*shape, 3, 8, 8, generator=generator).double() for shape in ((2, 3), (12,)))
    rates = 0.1 + 0.3 * torch.rand(3, 2, generator=generator).double()
    return xavier(net, generator), images, torch.arange(3).expand(2, 3), rates, real, torch.arange(12) % 3


def loss(net: nn.Module, given: tuple, images: Tensor, rates: Tensor, **options: bool) -> Tensor:
    start, _, labels, _, real, wanted = given
    weights = unroll(net, start, Steps(images, labels, rates), **options)
    return F.cross_entropy(functional_call(net, weights, (real,)), wanted)


@pytest.mark.parametrize("remember", [True, False])
def test_the_unrolled_gradient_is_a_finite_difference(net, given, remember):
    images, rates = (given[place].clone().requires_grad_() for place in (1, 3))
    slopes = torch.autograd.grad(loss(net, given, images, rates, remember=remember), [images, rates])
    generator, small = torch.Generator().manual_seed(2), 1e-5
    for which, slope in enumerate(slopes):
        for _ in range(4):
            way = torch.randn(slope.shape, generator=generator).double()
            ends = []
            for sign in (1, -1):
                moved = [tensor.detach().clone() for tensor in (images, rates)]
                moved[which] += sign * small * way
                ends.append(loss(net, given, *moved).item())
            assert (slope * way).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * small), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_remembered_is_computed_again(name):
    net, generator = NETWORKS[name](image_size=16, classes=3), torch.Generator().manual_seed(0)
    images, rates = torch.randn(2, 3, 3, 16, 16, generator=generator), torch.full((2, 2), 0.05)
    given = (
        xavier(net, generator),
        images,
        torch.arange(3).expand(2, 3),
        rates,
        torch.randn(6, 3, 16, 16),
        torch.arange(6) % 3,
    )
    tensors = [images.requires_grad_(), rates.requires_grad_()]
    one, other = (
        torch.autograd.grad(loss(net, given, *tensors, remember=remember), tensors) for remember in (True, False)
    )
    for first, second in zip(one, other, strict=True):
        assert first.abs().max() > 0
        torch.testing.assert_close(first, second)


def test_a_step_goes_down_the_gradient(net, given):
    start, images, labels, *_ = given
    moved = step(net, start, images[0], labels[0], torch.tensor(0.5).double(), graph=False)
    weights = [weight.clone().requires_grad_() for weight in start.values()]
    named = dict(zip(start, weights, strict=True))
    F.cross_entropy(functional_call(net, named, (images[0],)), labels[0]).backward()
    for weight, there in zip(weights, moved.values(), strict=True):
        assert not there.requires_grad
        torch.testing.assert_close(there, (weight - 0.5 * weight.grad).detach())


def test_training_takes_the_steps_in_their_order(net, given):
    start, images, labels, rates, *_ = given
    steps, weights = Steps(images, labels, rates), start
    for rate, batch in zip(rates.flatten(), [0, 1, 0, 1, 0, 1], strict=True):
        weights = step(net, weights, images[batch], labels[batch], rate, graph=False)
    for found in (train(net, start, steps), unroll(net, start, steps)):
        assert all(torch.equal(found[name].detach(), weights[name]) for name in start)


def test_xavier_is_drawn_from_its_generator():
    net = LeNet(image_size=32, classes=10)
    first, again, other = (xavier(net, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert first["7.weight"].std() == pytest.approx((2 / (400 + 120)) ** 0.5, rel=0.02)
    assert all(not weight.any() for name, weight in first.items() if name.endswith("bias"))


@pytest.mark.parametrize(("kind", "weights"), [(LeNet, 62_006), (AlexCifarNet, 1_756_426)])
def test_networks_have_the_weights_of_the_released_ones(kind, weights):
    net = kind(image_size=32, classes=10)
    assert sum(weight.numel() for weight in net.parameters()) == weights
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="image_size=4 is too small for"):
        kind(image_size=4, classes=10)


def test_accuracy_is_the_share_found():
    net = nn.Flatten()
    images, labels = torch.eye(3)[[0, 1, 2, 2, 1]].view(5, 3, 1, 1), torch.tensor([0, 1, 2, 0, 0])
    assert accuracy(net, {}, images, labels, batch=2) == pytest.approx(0.6)


def test_what_was_learned_comes_back_in_the_order_of_its_steps(tmp_path):
    """Whatever the order of the rows."""
    rng, net = np.random.default_rng(0), LeNet(image_size=16, classes=2)
    generator = torch.Generator().manual_seed(0)
    start = xavier(net, generator)
    steps, labels = np.repeat(np.arange(3), 2), np.tile(np.arange(2), 3)
    images = rng.random((6, 3, 16, 16), np.float32)
    order = rng.permutation(6)
    rates = rng.random((2, 3), np.float32)
    mean, std = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.3, 0.4], np.float32)
    flat = torch.cat([weight.flatten() for weight in start.values()]).numpy()
    Distilled(images[order], labels[order], steps[order], rates, mean, std, flat, "lenet", 6).save(tmp_path / "d.npz")
    found = Distilled.load(tmp_path / "d.npz")
    sequence = found.sequence(found.build(2))
    wanted = torch.from_numpy((images - mean[:, None, None]) / std[:, None, None]).view(3, 2, 3, 16, 16)
    torch.testing.assert_close(sequence.images, wanted)
    assert sequence.labels.tolist() == [[0, 1]] * 3
    assert torch.equal(sequence.rates, torch.from_numpy(rates))
    assert sequence.start is not None
    assert all(torch.equal(sequence.start[name], start[name]) for name in start)
    white = found.normalised(np.full((1, 3, 16, 16), 255, np.uint8))
    torch.testing.assert_close(white, found.normalised(np.ones((1, 3, 16, 16), np.float32)))
