"""NLVR2 (Suhr et al. 2019, arXiv 1811.00491) and NLVR: is a sentence true of two pictures (of one that holds them all)?

Accuracy is the share of right answers. Consistency is the share of sentences, each of which comes with several pairs of
pictures, that are judged right every time, as the corpus' own script counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from tldr.data.loading import SECOND, PairsDataset, ordered_loader
from tldr.data.truth import truths
from tldr.evaluator.base import Evaluator, Seeing, evaluating, on_device
from tldr.pairs import Pairs

_GROUP = "identifier"


@runtime_checkable
class Judge(Seeing, Protocol):
    """What the task asks of a model; ``columns`` has ``image_2`` if it looks at two pictures."""

    columns: tuple[str, ...]

    def judge(self, batch: Any) -> Tensor:
        """A batch, its sentences in ``captions`` -> (B,) log-odds that they are true."""
        ...


class Nlvr2(Evaluator):
    """The column ``label`` says whether the sentence is true, ``identifier`` which rows share a sentence (without it,
    there is no consistency), ``image_2`` where the second picture is."""

    task = "nlvr2"
    columns = ("label",)
    sources = "data=nlvr2, data=nlvr (one picture), or data=shapes_eval and data=cifar_scenes_eval"

    def lacks(self, model: nn.Module) -> str:
        """The head that judges."""
        return "" if isinstance(model, Judge) else "judge (train it one: python train.py model=nlvr2)"

    def check(self, model: nn.Module, pairs: Pairs) -> None:
        """Also that there are two pictures for a model that looks at two."""
        super().check(model, pairs)
        self.check_columns(pairs, _second(model))

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``nlvr2/accuracy`` and ``nlvr2/consistency`` in percent, and how many ``sentences`` were judged."""
        self.check(model, pairs)
        judge, odds = cast(Judge, model), []
        dataset = PairsDataset.seen_by(judge, pairs, columns=_second(model))
        with evaluating(model), self.bar("judge", len(pairs), " sentences") as bar:
            for batch in ordered_loader(dataset, batch_size=self.batch_size, num_workers=self.num_workers):
                odds.append(judge.judge(on_device(cast(Mapping[str, Any], batch), judge.device)).float().cpu())
                bar.update(len(batch["captions"]))
        scores = torch.cat(odds).numpy()
        right = ((scores > 0) == np.array(truths(pairs.column("label").tolist(), "label"))) & ~np.isnan(scores)
        self.details = self._records(pairs, scores, right)
        numbers: dict[str, float] = {"nlvr2/accuracy": 100 * float(right.mean())}
        if _GROUP in pairs.table.column_names:
            numbers["nlvr2/consistency"] = 100 * consistency(right, pairs.column(_GROUP))
        return {**numbers, "nlvr2/sentences": len(right)}

    def _records(self, pairs: Pairs, scores: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
        names = [name for name in ("uid", "caption", "image", SECOND, "label") if name in pairs.table.column_names]
        rows = pairs.table.select(names).to_pylist()
        found = zip(rows, scores.tolist(), right.tolist(), strict=True)
        return [{**row, "log_odds": round(score, 4), "right": is_right} for row, score, is_right in found]


def _second(model: nn.Module) -> tuple[str, ...]:
    return (SECOND,) if SECOND in cast(Judge, model).columns else ()


def consistency(right: np.ndarray, groups: np.ndarray) -> float:
    """The share of ``groups`` (N,) all of whose answers are ``right`` (N,) bool."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    return float(1 - (np.bincount(group, weights=~right) > 0).mean())
