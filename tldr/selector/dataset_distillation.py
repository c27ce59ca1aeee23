"""Dataset distillation (Wang et al. 2018, arXiv 1811.10959): new pictures, and a step size for each step on them, with
which a few steps of training make a network good at the pool's labels.

Each of the T steps sees the same number of learned pictures of every class, and there are ``passes`` over all steps;
the loss of the network after the last step, on a batch of real pictures, is differentiated through all of them
(`tldr.nn.distillation`). The network is initialised anew for every batch (``init="random"``), or always with the same
weights (``fixed``: better for these, worth nothing for others). The pictures' labels do not change.

The made pairs are like any others: a PNG, a caption, and columns with the label, the ``step`` (from 0) and the
``step_size`` in each pass. The unrounded pictures, and the fixed weights, are in ``distilled.npz`` beside them
(`tldr.nn.distillation.Distilled`), in the order of the pairs.

Shapes: N pairs of the pool, n made, C classes, T steps, B pictures of a step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from tldr.check import check_flag
from tldr.data.export import write_pictures
from tldr.data.loading import PairsDataset, ordered_loader
from tldr.ledger import metered
from tldr.nn.distillation import NETWORKS, WIDTHS, Distilled, Steps, unroll, xavier
from tldr.pairs import DIGEST, Pairs, derive_uid
from tldr.selector.base import Made, Maker, above_zero, counts, one_of
from tldr.signal.store import Signals

INITS = ("random", "fixed")


class DatasetDistillation(Maker):
    """``labels`` is the pool's column of labels. ``network`` is one of `NETWORKS`, of ``width`` channels (None: as many
    as the source's). There are at most ``steps`` steps: the most that share the pictures of a class evenly.
    ``step_size`` is the initial size of all steps; ``lr`` is Adam's rate, for pictures and step sizes (before a
    softplus), halved after each tenth of the ``iterations``. An iteration averages over ``networks`` initialisations
    and sees ``batch_size`` real pictures. ``caption`` is a template such as ``a photo of a {class}``, None: the most
    frequent caption of the class in the pool. ``remember=False`` saves memory and costs time (`unroll`)."""

    def __init__(
        self,
        *,
        labels: str = "label",
        caption: str | None = None,
        network: str = "lenet",
        width: int | None = 24,
        image_size: int = 32,
        init: str = "random",
        networks: int = 1,
        steps: int = 10,
        passes: int = 3,
        step_size: float = 0.02,
        iterations: int = 300,
        lr: float = 0.1,
        batch_size: int = 256,
        remember: bool = True,
    ) -> None:
        one_of(NETWORKS, network=network)
        one_of(INITS, init=init)
        self.width = WIDTHS[network] if width is None else width
        counts(1, width=self.width, networks=networks, steps=steps, passes=passes, iterations=iterations)
        counts(1, batch_size=batch_size, image_size=image_size)
        check_flag("selector", remember=remember)
        above_zero(step_size=step_size, lr=lr)
        if caption is not None and "{class}" not in str(caption):
            raise ValueError(f"selector.caption={caption!r} has no {{class}}; write 'a photo of a {{class}}', or null")
        NETWORKS[network](image_size=image_size, classes=2, width=self.width)  # raises where the pictures are too small
        self.labels, self.caption, self.network, self.image_size = labels, caption, network, image_size
        self.init, self.networks, self.steps, self.passes = init, networks, steps, passes
        self.step_size, self.iterations, self.lr, self.batch_size = step_size, iterations, lr, batch_size
        self.remember = remember

    def check(self, pool: Pairs) -> None:
        """Raises ValueError where the labels are not there, have gaps, or are all the same."""
        super().check(pool)
        names = pool.table.column_names
        if self.labels not in names:
            raise ValueError(
                f"selector.labels={self.labels}: the pool has no such column, and dataset_distillation needs labels; "
                f"name one of {', '.join(names)} with selector.labels=..."
            )
        column = pool.table[self.labels]
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(
                f"selector.labels={self.labels}: {column.null_count} pairs have no label, such as "
                f"{pool.uids[row].as_py()}; leave them out of the pool"
            )
        if len(pc.unique(column)) < 2:
            raise ValueError(f"selector.labels={self.labels} has a single label; take a column that tells pairs apart")

    def make(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, folder: Path) -> Made:
        """Learn ``keep`` pictures and write them. Raises ValueError where they cannot be shared evenly by the classes,
        for a picture that cannot be decoded, and where learning diverges."""
        self.check(pool)
        classes, label = np.unique(pool.column(self.labels), return_inverse=True)
        count = self._steps(keep, len(classes), len(pool))
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.choice(len(pool), min(len(pool), self.iterations * self.batch_size), replace=False))
        pixels, places = self._read(pool.take(drawn)), torch.from_numpy(label[drawn])
        learned, shown = self._learn(pixels, places, len(classes), keep, count, seed)
        seen = np.zeros(len(pool), bool)
        seen[drawn[shown]] = True
        did = {True: "its distilled pictures were learned from it", False: f"not drawn in {self.iterations} iterations"}
        reasons = [f"of class {name}: {did[bool(is_seen)]}" for name, is_seen in zip(classes[label], seen, strict=True)]
        return Made(self._write(pool, classes, label, learned, folder), reasons)

    def _steps(self, keep: int, classes: int, total: int) -> int:
        """How many steps share ``keep`` pictures such that each sees every class as often."""
        if keep % classes:
            near = [many for many in (keep // classes * classes, (keep // classes + 1) * classes) if 0 < many < total]
            told = ", ".join(f"compression={1 - many / total:.10g} makes {many}" for many in near)
            raise ValueError(
                f"{keep} pictures cannot be shared evenly by the {classes} classes of selector.labels={self.labels}: "
                f"the number is steps x classes x pictures of a class in a step; {told or 'the pool is too small'}"
            )
        each = keep // classes
        count = max(steps for steps in range(1, min(self.steps, each) + 1) if each % steps == 0)
        if count < min(self.steps, each):
            print(f"selector.steps={self.steps} is lowered to {count}, which divides the {each} pictures of a class")
        return count

    def _read(self, pairs: Pairs) -> Tensor:
        """(N, 3, S, S) uint8: the pictures, all in memory."""
        found = torch.empty(len(pairs), 3, self.image_size, self.image_size, dtype=torch.uint8)
        with tqdm(total=len(pairs), desc="reading pictures", unit="pair") as bar:
            for batch in ordered_loader(PairsDataset(pairs, image_size=self.image_size), batch_size=256):
                found[batch["rows"]] = batch["images"]
                bar.update(len(batch["captions"]))
        return found

    # ------------------------------------------------------------------------------------------------ learning

    def _learn(
        self, pixels: Tensor, labels: Tensor, classes: int, keep: int, count: int, seed: int
    ) -> tuple[Distilled, np.ndarray]:
        """Optimise pictures and rates; ``pixels`` (N, 3, S, S) and ``labels`` (N,) are real. Also which (N,) of these
        were seen: of each order what is less than a batch is left out."""
        generator, device = torch.Generator().manual_seed(seed), self.device
        mean, std = _moments(pixels)
        net = (
            NETWORKS[self.network](image_size=self.image_size, classes=classes, width=self.width)
            .requires_grad_(False)
            .to(device)
        )
        size, each = self.image_size, keep // classes // count
        images = torch.randn(count, classes * each, 3, size, size, generator=generator).to(device).requires_grad_()
        own = torch.arange(classes, device=device).repeat_interleave(each).expand(count, -1)
        raw = torch.full((self.passes, count), self.step_size, device=device).expm1().log().requires_grad_()
        fixed = xavier(net, generator)
        optimizer = torch.optim.Adam([images, raw], lr=self.lr, betas=(0.5, 0.999))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, round(self.iterations / 10)), gamma=0.5)
        order, size = torch.empty(0, dtype=torch.long), min(self.batch_size, len(pixels))
        shown = np.zeros(len(pixels), bool)
        with (
            metered(device=self.device) as meter,
            tqdm(range(self.iterations), desc="distilling", unit="iteration") as bar,
        ):
            for iteration in bar:
                if len(order) < size:
                    order = torch.randperm(len(pixels), generator=generator)
                rows, order = order[:size], order[size:]
                shown[rows.numpy()] = True
                real = ((pixels[rows].float() / 255 - mean) / std).to(device)
                optimizer.zero_grad()
                total = 0.0
                for _ in range(self.networks):
                    start = fixed if self.init == "fixed" else xavier(net, generator)
                    start = {name: weight.to(device) for name, weight in start.items()}
                    with meter.batch(1):
                        weights = unroll(net, start, Steps(images, own, F.softplus(raw)), remember=self.remember)
                        loss = F.cross_entropy(functional_call(net, weights, (real,)), labels[rows].to(device))
                        (loss / self.networks).backward()
                    total += loss.item() / self.networks
                if not np.isfinite(total):
                    raise ValueError(
                        f"the loss on real pictures is {total} in iteration {iteration}; lower selector.step_size or "
                        "selector.lr"
                    )
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{total:.3f}", refresh=False)
        flat = images.detach().cpu().flatten(0, 1)
        distilled = Distilled(
            images=(flat * std + mean).numpy(),
            labels=own.flatten().cpu().numpy(),
            steps=np.repeat(np.arange(count), classes * each),
            rates=F.softplus(raw).detach().cpu().numpy(),
            mean=mean.flatten().numpy(),
            std=std.flatten().numpy(),
            start=torch.cat([weight.flatten() for weight in fixed.values()])[
                : None if self.init == "fixed" else 0
            ].numpy(),
            network=self.network,
            width=self.width,
        )
        return distilled, shown

    # ------------------------------------------------------------------------------------------------ the pairs

    def _write(self, pool: Pairs, classes: np.ndarray, label: np.ndarray, learned: Distilled, folder: Path) -> Pairs:
        """Pictures and ``distilled.npz`` into ``folder``, and the pairs."""
        says = [self._caption(pool, name, label == place) for place, name in enumerate(classes)]
        captions = [says[place] for place in learned.labels]
        names, digests = write_pictures(learned.images, folder)
        uids = [derive_uid(name, caption) for name, caption in zip(names, captions, strict=True)]
        order = np.argsort(uids)  # the rows of the pairs
        rows = {key: getattr(learned, key)[order] for key in ("images", "labels", "steps")}
        Distilled(**{**vars(learned), **rows}).save(folder / "distilled.npz")
        first = np.unique(label, return_index=True)[1]
        columns = {
            "uid": uids,
            "image": names,
            "caption": captions,
            DIGEST: digests,
            self.labels: pool.table[self.labels].take(pa.array(first[learned.labels])),  # of the pool's type
            "step": learned.steps,
            "step_size": pa.array(learned.rates.T[learned.steps].tolist(), pa.list_(pa.float32())),
        }
        provenance = {"data": "dataset_distillation", "parent": pool.hash}
        return Pairs.build(columns, root=str(folder.resolve()), provenance=provenance)

    def _caption(self, pool: Pairs, name: object, own: np.ndarray) -> str:
        """The template's, or the class's most frequent one, of equals the first in the alphabet."""
        if self.caption is not None:
            return self.caption.replace("{class}", str(name))
        counts = pc.value_counts(pool.captions.filter(pa.array(own)))
        found = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
        return min(found, key=lambda each: (-each[1], each[0]))[0]


def _moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) mean and standard deviation of each channel of (N, 3, S, S) uint8, in which 255 is 1."""
    totals = torch.zeros(2, 3, dtype=torch.float64)
    for part in pixels.split(4096):
        values = part.double().transpose(0, 1).flatten(1) / 255
        totals += torch.stack([values.sum(1), values.square().sum(1)])
    mean, square = totals / (pixels.numel() // 3)
    std = (square - mean.square()).clamp_min(1e-6).sqrt()  # of pictures of one colour, not 0
    return mean.float()[:, None, None], std.float()[:, None, None]
