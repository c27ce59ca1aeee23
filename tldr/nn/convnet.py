"""A residual network of nine layers for small pictures: the ResNet-9 of D. Page's "How to train your ResNet" (2018), on
patches of 2 x 2 pixels instead of pixels, which costs a quarter and still tells CIFAR-10's classes apart.

For classifiers and experts that are trained in a minute on a CPU. Every step keeps the samples of a batch apart in
evaluation mode, so that gradients of single samples (`torch.func`) are those of the network.

Shapes: B pictures, W width, D = 4 W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """(B, 3, H, W) pictures -> (B, ``width``) features; ``image_size`` is what the loader should give it.

    ``channels`` are those of the stem; ``patch_size`` is its stride."""

    def __init__(self, *, image_size: int = 32, channels: int = 16, patch_size: int = 2) -> None:
        super().__init__()
        if image_size < 4 * patch_size:
            raise ValueError(f"image_size={image_size} is too small for patch_size={patch_size}: two poolings follow")
        self.image_size, self.width = image_size, 4 * channels
        self.stem = nn.Conv2d(3, channels, patch_size, patch_size, bias=False)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            _conv(channels, 2 * channels),
            nn.MaxPool2d(2),
            _Residual(2 * channels),
            _conv(2 * channels, 4 * channels),
            nn.MaxPool2d(2),
            _conv(4 * channels, 4 * channels),
            _Residual(4 * channels),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, or float in [-1, 1] -> (B, D)."""
        if images.dtype == torch.uint8:
            images = images.to(self.stem.weight.dtype) / 127.5 - 1
        return self.layers(self.stem(images))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def moved(images: Tensor, most: int) -> Tensor:
    """(B, 3, H, W), each moved by up to ``most`` pixels either way, reflected at the edge, and mirrored or not."""
    count, _, height, width = images.shape
    y, x = (torch.randint(-most, most + 1, (count, 1), device=images.device) for _ in range(2))
    down = _reflected(torch.arange(height, device=images.device) + y, height)  # (B, H)
    right = _reflected(torch.arange(width, device=images.device) + x, width)
    flip = torch.rand(count, 1, device=images.device) < 0.5
    right = torch.where(flip, right.flip(1), right)
    which = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[which, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    places = places.abs()
    return torch.where(places >= size, 2 * size - 2 - places, places)
