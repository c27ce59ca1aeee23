"""Learning from a few steps: gradient descent on given batches, differentiable with respect to these batches, and a
network's accuracy afterwards.

Dataset Distillation (Wang et al. 2018, arXiv 1811.10959, algorithm 1): from weights theta_0, step t goes
theta_{t+1} = theta_t - rate_t * gradient of the loss on batch t; the loss on real pictures at theta_T is differentiated
with respect to the pictures and rates of all steps. The networks and their Xavier initialisation are as released.

Shapes: T batches of B pictures, E passes over them, S side of a picture, C classes, P weights, n = T B pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tldr.atomic import atomic_path

Weights = dict[str, Tensor]


class LeNet(nn.Sequential):
    """(B, 3, S, S) -> (B, C): 60 thousand weights for 32 pixels. ``width`` are the first layer's channels."""

    def __init__(self, *, image_size: int, classes: int, width: int = 6) -> None:
        if image_size < 16:
            raise ValueError(f"image_size={image_size} is too small for lenet: at least 16")
        side, more = ((image_size - 4) // 2 - 4) // 2, 8 * width // 3
        super().__init__(
            nn.Conv2d(3, width, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, more, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(more * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, classes),
        )  # fmt: skip


class AlexCifarNet(nn.Sequential):
    """(B, 3, S, S) -> (B, C): 1.8 million weights for 32 pixels, and fifty times LeNet's work. ``width`` are the
    channels of both convolutions."""

    def __init__(self, *, image_size: int, classes: int, width: int = 64) -> None:
        if image_size < 8:
            raise ValueError(f"image_size={image_size} is too small for alexcifarnet: at least 8")
        side = -(-image_size // 4)
        super().__init__(
            nn.Conv2d(3, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), _response_norm(),
            nn.Conv2d(width, width, 5, padding=2), nn.ReLU(), _response_norm(), nn.MaxPool2d(3, 2, 1),
            nn.Flatten(), nn.Linear(width * side**2, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(),
            nn.Linear(192, classes),
        )  # fmt: skip


def _response_norm() -> nn.Module:
    return nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)


NETWORKS = {"lenet": LeNet, "alexcifarnet": AlexCifarNet}
WIDTHS = {"lenet": 6, "alexcifarnet": 64}  # of the released code


def xavier(net: nn.Module, generator: torch.Generator) -> Weights:
    """Initial weights, on the CPU: normal with Xavier's variance; biases 0."""
    drawn = {}
    for name, like in net.named_parameters():
        drawn[name] = torch.zeros(like.shape, dtype=like.dtype)
        if like.ndim > 1:
            nn.init.xavier_normal_(drawn[name], generator=generator)
    return drawn


@dataclass(frozen=True)
class Steps:
    """What a network learns from: ``images`` (T, B, 3, S, S) normalised, their ``labels`` (T, B), and the learning
    ``rates`` (E, T) of each pass over them. ``start``: the initial weights they were learned for (None: any)."""

    images: Tensor
    labels: Tensor
    rates: Tensor
    start: Weights | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batch, labels and rate of each of the E T steps, in their order."""
        for rates in self.rates:
            yield from zip(self.images, self.labels, rates, strict=True)


@dataclass(frozen=True)
class Distilled:
    """What a maker learned, in full precision, unlike a PNG: ``images`` (n, 3, S, S), 1 is white, not clipped;
    ``labels`` (n,), the indices of their classes; ``steps`` (n,), the batch of each; ``rates`` (E, T); ``mean`` and
    ``std`` (3,), with which pictures are normalised; ``start`` (P,), the initial weights for which they were learned,
    empty for any; the name of the ``network`` and its ``width``."""

    images: np.ndarray
    labels: np.ndarray
    steps: np.ndarray
    rates: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    start: np.ndarray
    network: str
    width: int

    def save(self, file: Path) -> None:
        """Write ``distilled.npz``."""
        with atomic_path(file) as temporary, temporary.open("wb") as sink:
            arrays: Any = {name: np.asarray(value) for name, value in vars(self).items()}
            np.savez(sink, **arrays)

    @classmethod
    def load(cls, file: Path) -> Distilled:
        """Read what `save` wrote."""
        with np.load(file) as arrays:
            return cls(**{**arrays, "network": str(arrays["network"]), "width": int(arrays["width"])})

    def build(self, classes: int) -> nn.Module:
        """The network for which they were learned."""
        return NETWORKS[self.network](image_size=self.images.shape[-1], classes=classes, width=self.width)

    def normalised(self, images: np.ndarray) -> Tensor:
        """(B, 3, S, S) of which 1, or as uint8 255, is white -> what the network sees."""
        scale = 255 if images.dtype == np.uint8 else 1
        return torch.from_numpy(_normalised(images.astype(np.float32) / scale, self.mean, self.std))

    def sequence(self, net: nn.Module) -> Steps:
        """The steps, for a network of these shapes."""
        order = np.lexsort((np.arange(len(self.steps)), self.labels, self.steps))
        count = self.rates.shape[1]
        images = self.normalised(self.images[order])
        labels = torch.from_numpy(self.labels[order])
        start = unflatten(net, torch.from_numpy(self.start)) if len(self.start) else None
        return Steps(
            images.unflatten(0, (count, -1)), labels.unflatten(0, (count, -1)), torch.from_numpy(self.rates), start
        )


def unflatten(net: nn.Module, flat: Tensor) -> Weights:
    """(P,) -> the weights by name."""
    shapes = {name: like.shape for name, like in net.named_parameters()}
    pieces = flat.split([shape.numel() for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def _normalised(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return ((images - mean[:, None, None]) / std[:, None, None]).astype(np.float32)


def step(
    net: nn.Module, weights: Weights, images: Tensor, labels: Tensor, rate: Tensor, *, graph: bool = True
) -> Weights:
    """One step of gradient descent on (B, 3, S, S) and (B,). With ``graph`` the result is differentiable with respect
    to everything but the labels, if the weights require a gradient; without, it is detached."""
    if not graph:
        weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    loss = F.cross_entropy(functional_call(net, weights, (images,)), labels)
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=graph)
    moved = [weight - rate * slope for weight, slope in zip(weights.values(), slopes, strict=True)]
    return dict(zip(weights, moved if graph else [weight.detach() for weight in moved], strict=True))


def unroll(net: nn.Module, start: Weights, steps: Steps, *, remember: bool = True) -> Weights:
    """The weights after all steps from ``start``, differentiable with respect to pictures and rates. Unless it may
    ``remember`` the graphs of all steps, only their weights are stored, and each step is recomputed in the backward
    pass: the same gradients for a third more time, in the memory of one step and T times the weights."""
    weights = {name: weight.detach().requires_grad_() for name, weight in start.items()}
    for images, labels, rate in steps:
        if remember:
            weights = step(net, weights, images, labels, rate)
        else:
            moved: Any = _Again.apply(net, list(weights), labels, images, rate, *weights.values())
            weights = dict(zip(weights, moved, strict=True))
    return weights


class _Again(torch.autograd.Function):
    """A step that stores its inputs and no graph, and is recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, net: nn.Module, names: list[str], labels: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.net, ctx.names = net, names
        ctx.save_for_backward(labels, *tensors)
        images, rate, *weights = tensors
        with torch.enable_grad():
            moved = step(net, dict(zip(names, weights, strict=True)), images, labels, rate, graph=False)
        return tuple(moved.values())

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        labels, *saved = ctx.saved_tensors
        with torch.enable_grad():
            images, rate, *weights = tensors = [tensor.detach().requires_grad_() for tensor in saved]
            moved = step(ctx.net, dict(zip(ctx.names, weights, strict=True)), images, labels, rate)
            return None, None, None, *torch.autograd.grad(list(moved.values()), tensors, slopes)


def train(net: nn.Module, start: Weights, steps: Steps) -> Weights:
    """Where the steps lead from ``start``, without what `unroll` keeps for differentiating."""
    weights = start
    for images, labels, rate in steps:
        weights = step(net, weights, images, labels, rate, graph=False)
    return {name: weight.detach() for name, weight in weights.items()}


@torch.no_grad()
def accuracy(net: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor, batch: int = 1000) -> float:
    """The share of normalised (B, 3, S, S) whose label (B,) is found."""
    right = 0
    for some, their in zip(images.split(batch), labels.split(batch), strict=True):
        right += int((functional_call(net, dict(weights), (some,)).argmax(1) == their).sum())
    return right / len(labels)
