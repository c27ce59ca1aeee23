"""Communication between the processes of a training run; a single process gets its own tensors back.

Shapes: B rows of this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd

_alone: ContextVar[bool] = ContextVar("a trial that others do not make", default=False)


def connected() -> bool:
    """Are there processes to talk to?"""
    return dist.is_available() and dist.is_initialized() and not _alone.get()


@contextmanager
def alone() -> Iterator[None]:
    """Ignore other processes in the body: for a trial of this one alone, perhaps on the CPU, which NCCL cannot use."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def gather(x: Tensor) -> Tensor:
    """(B, ...) of this process -> (world * B, ...) of all, in the order of their ranks. No gradient passes."""
    if not connected():
        return x
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def gather_with_gradient(x: Tensor) -> Tensor:
    """Like `gather`, but gradients flow back to the process that ``x`` (B, ...) comes from."""
    if not connected():
        return x
    return all_gather_tensor_autograd(x.contiguous(), 0, dist.group.WORLD)  # pyright: ignore[reportArgumentType]
