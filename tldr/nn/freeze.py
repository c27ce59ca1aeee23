"""Parameters that no loss reaches: a fine-tuned model keeps them, but AdamW and DDP must leave them out.

DDP waits for the gradient of every parameter that requires one, and fails if none comes. Which ones are not reached
depends on the objective (captioning uses no matching head) and, for a task's head, on what its backbone was built for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tldr.nn.processes import alone

Module = TypeVar("Module", bound=nn.Module)


def trial_losses(model: Any) -> Tensor:
    """The losses of a `tldr.model.base.Model`, over two black pictures with a caption each."""
    images = torch.zeros(2, 3, model.image_size, model.image_size, dtype=torch.uint8)
    batch = {"images": images, "captions": ["a", "b"], "image_ids": torch.arange(2)}
    return torch.stack(list(model.losses(batch).values())).sum()


def freeze_unreached(module: Module, loss: Callable[[Module], Tensor]) -> list[str]:
    """Freeze the parameters that a trial run of ``loss`` does not reach; return their names. It runs on a copy in
    training mode (else a quantizer passes no gradient), so that the module's own statistics, queues and random numbers
    stay as they are."""
    trial = copy.deepcopy(module).train()
    names, parameters = zip(*((n, p) for n, p in trial.named_parameters() if p.requires_grad), strict=True)
    with torch.random.fork_rng(), torch.enable_grad(), alone():
        found = torch.autograd.grad(loss(trial), parameters, allow_unused=True)
    unreached = [name for name, gradient in zip(names, found, strict=True) if gradient is None]
    own = dict(module.named_parameters())
    for name in unreached:
        own[name].requires_grad_(False)
    return unreached
