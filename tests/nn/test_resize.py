from typing import Any

import pytest
import torch
from torch import nn

from tldr.nn.resize import resized
from tldr.nn.vision import ImageEncoder


def build(backbone: str, size: int) -> nn.ModuleDict:
    torch.manual_seed(size)
    options: dict[str, Any] = {} if backbone == "conv_stem" else {"patch_size": 16}
    return nn.ModuleDict(
        {"eye": ImageEncoder(backbone, image_size=size, width=8, depth=1, heads=2, **options), "head": nn.Linear(8, 2)}
    )


@pytest.mark.parametrize("backbone", ["conv_stem", "vit"])
def test_positions_are_interpolated_and_all_else_stays(backbone):
    small, large = build(backbone, 32), build(backbone, 64)
    state = {key: value.clone() for key, value in small.state_dict().items()}
    prefix = small["eye"].num_prefix_tokens
    key = "eye.vit.pos_embed"
    state[key][:, prefix:] = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]  # the right half differs from the left
    found = resized(state, large)
    large.load_state_dict(found)
    patches = found[key][0, prefix:, 0].view(4, 4)
    torch.testing.assert_close(patches, patches[:1].expand(4, 4))
    assert (patches[0].diff() > 0).all()
    assert torch.equal(found[key][:, :prefix], state[key][:, :prefix])
    assert all(torch.equal(found[name], value) for name, value in state.items() if name != key)
    torch.testing.assert_close(resized(state, small), state)
