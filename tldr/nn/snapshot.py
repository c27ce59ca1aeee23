"""The weights that a network once had, and the gradients of single samples at them.

Shapes: B pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tldr.nn.shard import whole

_GRADIENTS = 1 << 25  # numbers of gradients of single samples that are held at once


class Snapshot(nn.Module):
    """The weights and buffers that a network once had, as buffers: in the state dict, out of the optimiser's reach."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.weights = {name.replace(".", "/"): name for name, _ in network.named_parameters()}
        self.others = {name.replace(".", "/"): name for name, _ in network.named_buffers()}
        for key, name in {**self.weights, **self.others}.items():
            self.register_buffer(key, _named(network, name).detach().clone())

    @torch.no_grad()
    def take(self, network: nn.Module) -> None:
        """Remember what ``network`` has now."""
        for key, name in {**self.weights, **self.others}.items():
            self.get_buffer(key).copy_(whole(_named(network, name)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and buffers by their names in the network."""
        weights = {name: self.get_buffer(key) for key, name in self.weights.items()}
        return weights, {name: self.get_buffer(key) for key, name in self.others.items()}


def gradient_norms(
    network: nn.Module, weights: Mapping[str, Tensor], others: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    """(B,) the norm over all ``weights`` of the gradient of each sample's cross-entropy. ``network`` is in evaluation
    mode: with the statistics of a batch in it, the gradient would not be the sample's own."""
    assert not network.training

    def loss(given: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, {**given, **others}, (image[None],)), label[None])

    fit = max(1, _GRADIENTS // sum(weight.numel() for weight in weights.values()))
    gradient = vmap(grad(loss), (None, 0, 0))
    found = []
    for some, their in zip(images.split(fit), labels.split(fit), strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for single samples
            slopes = gradient(dict(weights), some, their)
        found.append(torch.stack([slope.flatten(1).square().sum(1) for slope in slopes.values()]).sum(0).sqrt())
    return torch.cat(found)


def _named(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last)
