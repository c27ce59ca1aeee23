"""The order of training: shuffled batches that can start at any point.

Epoch e shows all pairs in a permutation that depends only on (seed, e); a batch is a slice of it. So the position of a
run is one number, the batches taken so far, and a resumed run takes the next one. Several processes take adjacent
slices: together they see what a single process with their combined batch would see. Augmentation draws from a generator
that is reseeded for every sample, from (seed, number of the draw), so that it depends neither on workers nor on other
random draws of the run.

Where pairs form groups (those that share a caption), an epoch of the same length can give each group a share of its
own, rounded up or down at random (systematic sampling: Madow 1949), which is filled by its pairs in turn.

Shapes: N pairs, B of a batch of one process, R processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Item = TypeVar("Item", covariant=True)


class Draw(NamedTuple):
    """A row, and how many samples the run had drawn before it (all processes together)."""

    row: int
    number: int


def refuse_too_few(count: int, batch_size: int, ranks: int = 1, together: int = 1) -> None:
    """Raises ValueError where ``count`` pairs are no batch for every process, or not as many as make a step."""
    if count < batch_size * ranks * together:
        each = f" in each of {ranks} processes" if ranks > 1 else ""
        each += f", {together} to a step (trainer.accumulate_grad_batches)," if together > 1 else ""
        raise ValueError(
            f"batch_size={batch_size}{each} is more than the {count} pairs there are to train on; lower it: batch_size "
            "of train.py, training.batch_size (or scorers.blip.training.batch_size) of select.py"
        )


class ShuffledBatches(Sampler[list[Draw]]):
    """Full batches of one epoch, from batch ``start`` of the run to the end of the epoch that it lies in. Their number
    is a multiple of ``together``, how many accumulate their gradients: Lightning steps at the end of every epoch, be it
    with fewer. ``groups`` (N,) are numbers from 0; a row is drawn in inverse proportion to its group's size to the
    power of ``balance``."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        together: int = 1,
        groups: np.ndarray | None = None,
        balance: float = 1.0,
    ) -> None:
        refuse_too_few(count, batch_size, ranks, together)
        self.together = together
        self.count, self.batch_size, self.seed, self.rank, self.ranks = count, batch_size, seed, rank, ranks
        self.groups, self.balance = groups, balance
        self.start = 0

    def __len__(self) -> int:
        return self.count // (self.batch_size * self.ranks * self.together) * self.together

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, first = divmod(self.start, len(self))
        order = self.order(epoch)
        for batch in range(first, len(self)):
            begin = (batch * self.ranks + self.rank) * self.batch_size
            places = range(begin, begin + self.batch_size)
            yield [Draw(int(order[place]), epoch * self.count + place) for place in places]

    def order(self, epoch: int) -> np.ndarray:
        """(N,) the rows that an epoch shows, in order."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.count)
        if self.groups is None:
            return order
        sizes = np.bincount(self.groups)
        # One group after the other, so that the share of a group is rounded, not that of each of its rows.
        order = order[np.argsort(rng.permutation(len(sizes))[self.groups[order]], kind="stable")]
        ends = np.cumsum(sizes[self.groups[order]] ** -float(self.balance))
        marks = (rng.random() + np.arange(self.count)) * (ends[-1] / self.count)
        places = np.searchsorted(ends, marks, side="right")
        return rng.permutation(order[np.minimum(places, self.count - 1)])  # rounding may lift the last mark to the end


class Drawn(Dataset[Item], Generic[Item]):
    """A dataset indexed by `Draw`: torch's CPU generator is seeded for each sample, and restored after it."""

    def __init__(self, dataset: Dataset[Item], *, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, draw: Draw) -> Item:
        before = torch.get_rng_state()
        seed = int(np.random.SeedSequence((self.seed, draw.number)).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU
        try:
            return self.dataset[draw.row]
        finally:
            torch.set_rng_state(before)


class OrderedLoader(DataLoader[Any]):
    """A loader over `ShuffledBatches` that counts the batches it has handed out, not those its workers have prefetched.
    Iterating continues from there: to the end of the epoch, then through the next one."""

    batch_sampler: ShuffledBatches

    def __init__(self, dataset: Drawn[Any], *, batch_sampler: ShuffledBatches, **options: Any) -> None:
        # Else every epoch would take a number from the run's generator, to seed workers that draw nothing.
        super().__init__(dataset, batch_sampler=batch_sampler, generator=torch.Generator(), **options)
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.batch_sampler.start = self.taken
        for batch in super().__iter__():
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches handed out, and the number of processes that take part."""
        return {"taken": self.taken, "ranks": self.batch_sampler.ranks}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a `state_dict`. Raises ValueError where it is of another number of processes."""
        if state["ranks"] != self.batch_sampler.ranks:
            raise ValueError(
                f"the run was interrupted with {state['ranks']} processes and cannot go on with "
                f"{self.batch_sampler.ranks}: give trainer.devices and trainer.num_nodes as they were"
            )
        self.taken = state["taken"]
