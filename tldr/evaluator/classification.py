"""Classification: how often a classifier's first guess, or one of its first five, is the pair's label. Data pruning is
measured by it (Paul et al. 2021, arXiv 2107.07075; Sorscher et al. 2022, arXiv 2206.14486). The model was trained on
these labels; `tldr.evaluator.zeroshot` evaluates models that were not.

Shapes: N pictures, B of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.evaluator.base import Evaluator, Seeing, evaluating
from tldr.metric.rank import hit_probability
from tldr.pairs import Pairs

RANKS = (1, 5)


@runtime_checkable
class Classifier(Seeing, Protocol):
    """What the task asks of a model."""

    classes: Sequence[Any]

    def predict(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, C) how likely each of ``classes`` is."""
        ...


class Classification(Evaluator):
    """The label is in the pair's ``column``; each has to be one of the model's classes."""

    task = "classes"
    sources = "data=cifar10, or any with a column of labels (evaluator.classification.column=...)"

    def __init__(
        self, *, column: str = "label", batch_size: int = 64, num_workers: int = 0, progress: bool = True
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, progress=progress)
        self.column = column

    def lacks(self, model: nn.Module) -> str:
        """Classes that it was trained to tell apart."""
        fits = isinstance(model, Classifier)
        return "" if fits else "classes and predict (train it: python train.py model=classifier)"

    def check(self, model: nn.Module, pairs: Pairs) -> None:
        """Raises ValueError also for labels that the model does not know."""
        super().check(model, pairs)
        self.check_columns(pairs, (self.column,))
        classes = cast(Classifier, model).classes
        strangers = sorted({str(label) for label in pairs.table[self.column].to_pylist() if label not in classes})
        if strangers:
            raise ValueError(
                f"classification: {strangers[0]!r} is none of the model's {len(classes)} classes (and "
                f"{len(strangers) - 1} others are not); give data with the labels that it was trained on"
            )

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``classification/top1`` and ``top5`` in percent, among how many ``classes``, of how many ``images``."""
        self.check(model, pairs)
        classifier = cast(Classifier, model)
        places = {label: place for place, label in enumerate(classifier.classes)}
        own = torch.tensor([places[label] for label in pairs.table[self.column].to_pylist()])
        dataset = PairsDataset.seen_by(classifier, pairs)
        hits = torch.zeros(len(RANKS), dtype=torch.float64)
        with evaluating(model), self.bar("classify", len(pairs), " images") as bar:
            for batch in ordered_loader(dataset, batch_size=self.batch_size, num_workers=self.num_workers):
                # Logarithms: probabilities below 1e-6 would all be taken as equal.
                scores = classifier.predict(batch["images"].to(classifier.device)).log().clamp_min(-1e4)
                right = F.one_hot(own[batch["rows"]], len(places)).bool().to(scores.device)
                hits += hit_probability(scores, right, RANKS).sum(0).cpu()
                bar.update(len(right))
        top1, top5 = (100 * hits / len(pairs)).tolist()
        counts = {"classification/classes": len(places), "classification/images": len(pairs)}
        return {"classification/top1": top1, "classification/top5": top5, **counts}
