"""A slowly moving teacher and its memory, as in MoCo (He et al. 2020, arXiv 1911.05722), ALBEF and BLIP.

The *momentum copy* of a module follows it as an exponential moving average. The *queue* remembers what the copy said of
the last pairs: keys to contrast with beyond the batch, comparable because the copy moves slowly.

Shapes: B pairs of this process, Q places of the queue, E embedding width.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from tldr.nn.processes import gather

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A copy that gradients do not reach; `follow` moves it."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student. Buffers (BatchNorm's statistics) are copied."""
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]  (documented: "Foreach Operations")
        list(teacher.parameters()), list(student.parameters()), 1 - momentum
    )
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


class Queue(nn.Module):
    """The last ``size`` pairs: image and text embeddings and the number of the picture, the oldest overwritten first.

    BLIP fills an empty queue with random vectors and needs a size that the batch divides. Here an empty place is not an
    entry, and a batch wraps around the end. Of ``size`` 0, it never holds any.
    """

    image: Tensor
    text: Tensor
    ids: Tensor
    added: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.long))
        self.register_buffer("added", torch.zeros((), dtype=torch.long))  # ever, not only those still here

    @property
    def filled(self) -> int:
        """How many places hold an entry: always the first ones."""
        return min(int(self.added), self.size)

    def clear(self) -> None:
        """Forget all entries."""
        self.added.zero_()

    def check(self, batch: int) -> None:
        """Raise ValueError where ``batch`` pairs, those of all processes, do not fit; it names a size that does."""
        if 0 < self.size < batch:
            raise ValueError(
                f"queue_size={self.size} is less than the batch of all processes together: take at least {batch} "
                f"(BLIP's is 20 batches, here {20 * batch}), or 0 for no queue"
            )

    @torch.no_grad()
    def add(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """Remember (B, E), (B, E) and (B,) of every process: all processes' queues stay equal.

        Raises ValueError where they do not fit.
        """
        if self.size == 0:
            return
        image, text, ids = gather(image), gather(text), gather(ids)
        self.check(len(ids))
        places = (self.added + torch.arange(len(ids), device=self.added.device)) % self.size
        self.image[places] = image.to(self.image.dtype)
        self.text[places] = text.to(self.text.dtype)
        self.ids[places] = ids
        self.added += len(ids)
