"""A classifier of the pool's labels, for the scores of data pruning that need labels. Several small networks
(``members``) are trained at once on the same batches; they share nothing, and the scores are means over them.

    el2n        ||p(x) - y||_2, p the probabilities early in training (Paul, Ganguli & Dziugaite 2021, arXiv 2107.07075)
    grand       ||grad_w loss(x, y)||_2 over all of a network's weights, likewise early (the same, section 2.2)
    forgetting  how often a picture that was classified rightly when it was last shown is now shown and classified
                wrongly (Toneva et al. 2019, arXiv 1812.05159); the largest number of showings where it was never right
    embedding   the networks' features at the end of training, side by side, of length 1

"Early" is the optimiser step ``early_steps``, whose weights are kept. The gradient is taken in evaluation mode: with
the statistics of a batch in it, it would not be the sample's own. Forgetting is counted during training, row by row of
the training pairs, on the pictures as they were shown; of pairs that were not there is no count, and they get NaN.

Shapes: B pictures, C classes, M members, D feature width, N training pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tldr.data.loading import Batch
from tldr.model.base import Model
from tldr.nn.convnet import ConvNet, moved
from tldr.nn.processes import gather
from tldr.nn.snapshot import Snapshot, gradient_norms
from tldr.nn.vision import ImageEncoder

CONVNET = "convnet"


class Member(nn.Module):
    """One network: the trunk that ``image`` tells of, and a linear layer."""

    def __init__(self, image: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        rest = {key: value for key, value in image.items() if key not in ("backbone", "pretrained")}
        self.trunk = ConvNet(**rest) if image["backbone"] == CONVNET else ImageEncoder(**image)
        self.head = nn.Linear(self.trunk.width, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D)."""
        found = self.trunk(images)
        return self.trunk.pool(found) if isinstance(self.trunk, ImageEncoder) else found

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, C) logits."""
        return self.head(self.features(images))


class Classifier(Model):
    """``column`` holds the labels (numbers or words); ``classes`` are what it can say, None: those of the training
    pairs. ``image`` tells of the networks: ``backbone: convnet`` with the arguments of `tldr.nn.convnet.ConvNet`, or
    those of `ImageEncoder`. ``early_steps`` below 1 is a share of the run. In training, pictures are moved by up to the
    share ``shift`` of their side, reflected at the edge, and mirrored (null: neither), on the device: decoded pictures
    can then stay in memory; the loader's ``augment`` may come before. ``count`` is N, which training finds out."""

    learns_tokenizer = False
    signal_weights: ClassVar[Mapping[str, str]] = dict.fromkeys(("el2n", "grand", "forgetting", "embedding"), "")
    early_step: Tensor
    trained_on: Tensor
    presented: Tensor
    correct: Tensor
    learned: Tensor
    forgotten: Tensor

    def __init__(
        self,
        *,
        image: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        column: str = "label",
        members: int = 1,
        early_steps: float = 0.1,
        shift: float | None = 0.125,
        classes: Sequence[Any] | None = None,
        count: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer)
        if members < 1:
            raise ValueError(f"model.members={members}; take at least 1")
        if early_steps <= 0 or (early_steps >= 1 and early_steps != int(early_steps)):
            raise ValueError(f"model.early_steps={early_steps}; take a number of steps, or a share of the run below 1")
        if shift is not None and not 0 <= shift < 1:
            raise ValueError(f"model.shift={shift}; take a share of the side such as 0.125, or null")
        self.save_hyperparameters(
            {
                "image": dict(image), "optimizer": dict(optimizer), "column": column, "members": members,
                "early_steps": early_steps, "shift": shift, "classes": None if classes is None else list(classes),
                "count": count,
            }
        )  # fmt: skip
        self.columns = self.columns_of({"column": column})
        self.column, self.early_steps, self.shift = column, early_steps, shift
        self.image, self.size = dict(image), members
        self.image_size, self.resize_mode = int(image["image_size"]), image.get("resize_mode", self.resize_mode)
        self.classes: list[Any] = []
        self.members, self.early = nn.ModuleList(), nn.ModuleList()
        self.register_buffer("early_step", torch.tensor(-1))
        if classes is not None:
            self._learn_to_say(classes)
        self.prepare_rows(count)
        self.train()

    @classmethod
    def columns_of(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The labels', and the uid."""
        return arguments.get("column", "label"), "uid"

    def prepare_table(self, table: pa.Table) -> None:
        """Learn the classes from the training pairs' labels."""
        if self.classes:
            return
        found = set(table[self.column].unique().to_pylist())
        if None in found or len(found) < 2:
            raise ValueError(
                f"model.column={self.column}: needs at least two labels, none missing; the training pairs have "
                f"{len(found - {None})} different labels"
                + (", and pairs without one; give a column that all have" * (None in found))
            )
        self._learn_to_say(sorted(found))

    def prepare_rows(self, count: int) -> None:
        """Make room for what is counted of each of the N training pairs."""
        self.hparams["count"] = count  # in the checkpoint, so that it loads by itself
        self.register_buffer("trained_on", torch.zeros(count, dtype=torch.int64))  # of the uid, 0: never shown
        self.register_buffer("presented", torch.zeros(count, dtype=torch.int32))
        for name, kind in (("correct", torch.bool), ("learned", torch.bool), ("forgotten", torch.int32)):
            self.register_buffer(name, torch.zeros(count, self.size, dtype=kind))

    def _learn_to_say(self, classes: Sequence[Any]) -> None:
        self.classes = list(classes)
        self.hparams["classes"] = self.classes
        self.places = {label: place for place, label in enumerate(self.classes)}
        self.members.extend(Member(self.image, len(self.classes)) for _ in range(self.size))
        self.early.extend(Snapshot(member) for member in self.members)

    def on_train_start(self) -> None:
        """Find the step whose weights are kept."""
        total = int(self.trainer.estimated_stepping_batches)
        self.early_at = max(1, round(self.early_steps * total)) if self.early_steps < 1 else int(self.early_steps)
        if self.early_at > total:
            raise ValueError(f"model.early_steps={self.early_steps} is past the end of the run, step {total}")
        self._kept = int(self.early_step) >= 0  # in the checkpoint that this run resumes from

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Store the early weights once their step has been taken. Not at the end of that batch: a checkpoint to resume
        from may have been written before that hook."""
        if not self._kept and self.trainer.global_step >= self.early_at:
            self.keep_early(self.early_at)
            self._kept = True

    def on_train_end(self) -> None:
        """Store them here if their step was the last."""
        self.on_train_batch_start(None, 0)

    def keep_early(self, step: int) -> None:
        """Store the current weights as the early ones."""
        for snapshot, member in zip(self.early, self.members, strict=True):
            snapshot.take(member)  # pyright: ignore[reportCallIssue]
        self.early_step.fill_(step)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Each member's gradient by itself: what one learns should not depend on the others."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            for member in self.members:
                nn.utils.clip_grad_norm_(member.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``ce``: cross-entropy, summed over the members, so that each has the gradient that it would have alone. In
        training, right and wrong predictions are counted."""
        labels, images = self._labels(batch), batch["images"]
        if self.training and self.shift is not None:
            images = moved(images, round(self.shift * images.shape[-1]))
        logits = torch.stack([member(images) for member in self.members])  # (M, B, C)
        if self.training:
            self._count(batch, (logits.argmax(2) == labels).T)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(self.size))
        return {"ce": self.size * loss}

    @torch.no_grad()
    def _count(self, batch: Batch, now: Tensor) -> None:
        """Count the pairs as shown; ``now`` (B, M) says whether each is classified rightly."""
        rows, names = batch["rows"].to(now.device), _hashes(batch).to(now.device)
        # Every process counts the whole batch: a pair may be shown to another process next time.
        rows, names, now = (gather(each) for each in (rows, names, now))
        if len(self.presented) == 0:
            return
        self.trained_on[rows] = names
        self.presented[rows] += 1
        self.forgotten[rows] += (self.correct[rows] & ~now).int()
        self.learned[rows] |= now
        self.correct[rows] = now

    @torch.no_grad()
    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """``el2n``, ``grand``, ``forgetting`` (B,) and ``embedding`` (B, M D), as told above. The batch has labels."""
        self._check()
        if int(self.early_step) < 0:
            raise ValueError("this classifier was never trained: it has no early weights to measure with")
        labels, images = self._labels(batch), batch["images"]
        el2n, grand = (torch.stack(each).mean(0) for each in zip(*self._scores(images, labels), strict=True))
        features = torch.cat([F.normalize(m.features(images), dim=1) for m in self.members], 1)  # pyright: ignore
        return {
            "el2n": el2n,
            "grand": grand,
            "forgetting": self._forgetting(batch),
            "embedding": features / self.size**0.5,
        }

    def _scores(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each member, (B,) EL2N and (B,) GraNd."""
        found = []
        for member, snapshot in zip(self.members, self.early, strict=True):
            weights, others = snapshot.state()  # pyright: ignore[reportCallIssue]
            p = functional_call(member, {**weights, **others}, (images,)).float().softmax(1)
            error = (p - F.one_hot(labels, p.shape[1])).norm(dim=1)
            found.append((error, gradient_norms(member, weights, others, images, labels)))
        return found

    def _forgetting(self, batch: Batch) -> Tensor:
        """(B,) mean number of times that it was forgotten; NaN where the pair was never trained on."""
        rows, names = batch["rows"].to(self.device), _hashes(batch).to(self.device)
        inside = rows < len(self.presented)
        rows = torch.where(inside, rows, 0)
        if not len(self.presented):
            return torch.full(rows.shape, torch.nan, device=self.device)
        never = self.presented.max()
        mean = torch.where(self.learned[rows], self.forgotten[rows], never).float().mean(1)
        inside &= self.trained_on[rows] == names
        return torch.where(inside, mean, torch.nan)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, C) probabilities of the ``classes`` at the end of training, mean over members."""
        self._check()
        return torch.stack([member(images).float().softmax(1) for member in self.members]).mean(0)

    def _labels(self, batch: Batch) -> Tensor:
        """(B,) the class's place."""
        self._check()
        given = batch["columns"].get(self.column)
        if given is None:
            raise ValueError(f"these pairs come without their labels (column {self.column})")
        strangers = sorted({str(label) for label in given if label not in self.places})
        if strangers:
            raise ValueError(
                f"{strangers[0]!r} is none of the {len(self.classes)} classes that the classifier learned from column "
                f"{self.column}"
            )
        return torch.tensor([self.places[label] for label in given], device=self.device)

    def _check(self) -> None:
        if not self.classes:
            raise ValueError("no classes to choose from: give classes=..., or train (which learns them from the pairs)")


def _hashes(batch: Batch) -> Tensor:
    """(B,) 63 bits of each uid; 0 is nobody's."""
    digests = [hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in batch["columns"]["uid"]]
    return torch.tensor([max(1, int.from_bytes(each) >> 1) for each in digests])
