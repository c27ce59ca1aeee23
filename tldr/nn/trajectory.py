"""Trajectory matching: networks whose weights are one vector, differentiable steps of gradient descent, and how far
these end from where an expert went.

Cazenavette et al. 2022 (arXiv 2203.11932) learn pictures with which a few steps lead as far as an expert's many on real
data; Wu et al. (TMLR 2024, arXiv 2308.07545, section 3) do it for an image encoder and a text head at once
(bi-trajectory); LoRS (Xu et al., ICML 2024, arXiv 2406.03793, section 3) learns besides which picture belongs to which
text, by how much.

Shapes: B pairs of a batch, E width of a given text embedding, D width of the common space, P weights of a network,
M learned pairs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tldr.nn.losses import info_nce, similarity

Loss = Callable[[Tensor, Tensor], Tensor]  # of unit embeddings (B, D) and (B, D)


class ConvEncoder(nn.Module):
    """The usual encoder in dataset distillation: ``depth`` blocks of a 3x3 convolution, an instance norm, ReLU and mean
    pooling by 2, then one linear layer."""

    def __init__(self, *, image_size: int, width: int, depth: int, dim: int) -> None:
        super().__init__()
        if image_size < 2**depth:
            raise ValueError(f"image_size={image_size} is too small to be halved depth={depth} times")
        blocks: list[nn.Module] = []
        for channels in (3, *[width] * (depth - 1)):
            blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        self.blocks = nn.Sequential(*blocks, nn.Flatten())
        self.out = nn.Linear(width * (image_size >> depth) ** 2, dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, D)."""
        return self.out(self.blocks(images))


class TextHead(nn.Module):
    """The trained head on a frozen text embedding: linear, then GELU and linear as a residual branch, LayerNorm. The
    published dropout is left out: a student's steps should not depend on draws that its expert did not make."""

    def __init__(self, *, width: int, dim: int) -> None:
        super().__init__()
        self.project, self.mix, self.norm = nn.Linear(width, dim), nn.Linear(dim, dim), nn.LayerNorm(dim)

    def forward(self, texts: Tensor) -> Tensor:
        """(B, E) -> (B, D)."""
        projected = self.project(texts)
        return self.norm(projected + self.mix(F.gelu(projected)))


class Stateless:
    """A network as a function of its weights, a vector (P,), and its inputs."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net.requires_grad_(False)
        self.shapes = {name: weight.shape for name, weight in net.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())

    def draw(self, generator: torch.Generator) -> Tensor:
        """(P,) weights to begin with: torch's own for layers, but from ``generator`` and with biases 0."""
        drawn = []
        for name, shape in self.shapes.items():
            weight = torch.full(shape, float(name.endswith("weight")))
            if len(shape) > 1:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            drawn.append(weight.flatten())
        return torch.cat(drawn)

    def __call__(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """(P,) and (B, ...) -> (B, D) unit vectors."""
        pieces = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}
        return F.normalize(functional_call(self.net, named, (inputs,)), dim=-1)


class Weights(NamedTuple):
    """Of both networks, a vector each; or two step sizes."""

    image: Tensor
    text: Tensor


class Dual(NamedTuple):
    """The image encoder and the text head."""

    image: Stateless
    text: Stateless

    @classmethod
    def build(cls, *, image_size: int, width: int, depth: int, text_width: int, dim: int) -> Dual:
        """A `ConvEncoder` and a `TextHead` that meet in ``dim``."""
        conv = ConvEncoder(image_size=image_size, width=width, depth=depth, dim=dim)
        return cls(Stateless(conv), Stateless(TextHead(width=text_width, dim=dim)))

    def draw(self, generator: torch.Generator) -> Weights:
        """Weights to begin with."""
        return Weights(self.image.draw(generator), self.text.draw(generator))

    def to(self, device: torch.device | str) -> Dual:
        """Both on ``device``."""
        for network in self:
            network.net.to(device)
        return self


def contrastive(temperature: float) -> Loss:
    """InfoNCE in both directions."""

    def loss(image: Tensor, text: Tensor) -> Tensor:
        return info_nce(image, text, image.new_tensor(1 / temperature), image, text, 0)

    return loss


def low_rank(diagonal: Tensor, left: Tensor, right: Tensor, alpha: float) -> Tensor:
    """LoRS's similarity of M pictures with M texts: diag(a) + alpha / r L R^T, of (M,), (M, r), (M, r)."""
    return torch.diag(diagonal) + (alpha / left.shape[1]) * left @ right.T


def weighted_bce(logits: Tensor, target: Tensor) -> Tensor:
    """(B, B) scores and target similarities -> half the sum of two means of binary cross-entropy: over entries with a
    target above 0.5, and over the others (LoRS, section 3.3). ``target`` may leave [0, 1]: the loss is linear in it."""
    loss = target * F.softplus(-logits) + (1 - target) * F.softplus(logits)
    own = target.detach() > 0.5
    return (loss[own].sum() / own.sum().clamp_min(1) + loss[~own].sum() / (~own).sum().clamp_min(1)) / 2


def graded(target: Tensor, temperature: float) -> Loss:
    """`weighted_bce` of scaled cosines against ``target`` (B, B)."""
    return lambda image, text: weighted_bce(similarity(image, text) / temperature, target)


def step(
    nets: Dual, weights: Weights, images: Tensor, texts: Tensor, rates: Weights, loss: Loss, *, graph: bool
) -> tuple[Weights, Tensor]:
    """One step of plain gradient descent on (B, 3, H, W) and (B, E), and the loss before it. With ``graph`` the result
    is differentiable with respect to all of them; without, it is detached."""
    if not graph:
        weights = Weights(*(one.detach().requires_grad_() for one in weights))
    value = loss(nets.image(weights.image, images), nets.text(weights.text, texts))
    slopes = torch.autograd.grad(value, weights, create_graph=graph)
    moved = (one - rate * slope for one, rate, slope in zip(weights, rates, slopes, strict=True))
    return Weights(*(one if graph else one.detach() for one in moved)), value.detach()


def unroll(
    nets: Dual, start: Weights, images: Tensor, texts: Tensor, rates: Weights, batches: Sequence[tuple[Tensor, Loss]]
) -> Weights:
    """Where a step on each of ``batches`` (rows of the learned pairs, and the loss on them) leads from ``start``."""
    weights = Weights(*(one.detach().requires_grad_() for one in start))
    for rows, loss in batches:
        weights, _ = step(nets, weights, images[rows], texts[rows], rates, loss, graph=True)
    return weights


def matching_loss(student: Weights, start: Weights, target: Weights) -> Tensor:
    """The student's squared distance from where the expert went, divided by that of ``start``: of image encoder and of
    text head, summed. 2 if the student has not moved."""
    return torch.stack(
        [(s - t).square().sum() / (b - t).square().sum() for s, b, t in zip(student, start, target, strict=True)]
    ).sum()
