"""Pictures that say which they are: number i is all of brightness i."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tldr.pairs import Pairs


class Fake(nn.Module):
    """What every fake model has, and checks: it is evaluated without gradients, in evaluation mode."""

    image_size, resize_mode = 8, "shortest"
    device = torch.device("cpu")

    def numbers(self, images: Tensor) -> list[int]:
        """(B, 3, H, W) -> which pictures they are."""
        assert not self.training
        assert torch.is_inference_mode_enabled()
        assert images.dtype == torch.uint8
        return images[:, 0, 0, 0].tolist()


def numbered(number: int, size: int = 8) -> Image.Image:
    """A picture whose centre is of that brightness, and its sides are of another: who squashes it reads a wrong one."""
    picture = Image.new("RGB", (2 * size, size), (255 - number,) * 3)
    picture.paste((number,) * 3, (size // 2, 0, size // 2 + size, size))
    return picture


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Pairs]:
    """``build(images, captions, **columns)``: pairs of numbered pictures, in that order."""

    def make(images: Sequence[int], captions: Sequence[str], **columns: Any) -> Pairs:
        for number in {*images, *columns.get("image_2", ())}:
            numbered(number).save(tmp_path / f"{number}.png")
        if "image_2" in columns:
            columns["image_2"] = [f"{number}.png" for number in columns["image_2"]]
        uids = columns.pop("uid", [f"{row:04}" for row in range(len(images))])
        named = {"uid": uids, "image": [f"{number}.png" for number in images], "caption": list(captions)}
        return Pairs.build({**named, **columns}, root=tmp_path)

    return make
