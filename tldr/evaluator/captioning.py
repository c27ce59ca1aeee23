"""Captioning: one caption for every picture, by beam search, against all captions that people gave it.

BLEU, METEOR, ROUGE-L, CIDEr and, where its models are, SPICE, in percent as papers print them (`tldr.metric.caption`).
Published settings are BLIP's (Li et al. 2022, section 5.2, and its code): three beams, the prompt "a picture of ", 5 to
20 tokens, of which the first four are the prompt's. Here lengths count the caption's own tokens: 1 to 16 are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Subset

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.evaluator.base import Evaluator, Seeing, evaluating, untrained
from tldr.metric.caption import score_captions, usable
from tldr.nn.generate import check_lengths
from tldr.pairs import Pairs


@runtime_checkable
class Writer(Seeing, Protocol):
    """What captioning asks of a model."""

    def generate(self, images: Tensor, **options: Any) -> list[str]:
        """(B, 3, H, W) uint8 -> B captions, without the prompt."""
        ...


class Captioning(Evaluator):
    """``prompt`` begins every caption and is no part of it; None is the one that the model was trained with.

    ``metrics``: None for all that can be had; ``tokenizer``: ``ptb`` as everybody's, or ``simple``, which needs no Java
    (``meteor`` and ``spice`` do) and whose numbers compare only with one another. A picture's record in ``details``
    opens with ``image_id`` and ``caption``, as COCO's files of results do; its references and its own scores follow.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        num_beams: int = 3,
        min_length: int = 5,
        max_length: int = 20,
        prompt: str | None = None,
        metrics: Sequence[str] | None = None,
        tokenizer: str = "ptb",
        progress: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, progress=progress)
        check_lengths("evaluator.captioning.", num_beams=num_beams, min_length=min_length, max_length=max_length)
        self.options: dict[str, Any] = {
            "strategy": "beam", "num_beams": num_beams, "min_length": min_length, "max_length": max_length,
            **({} if prompt is None else {"prompt": prompt}),
        }  # fmt: skip
        self.metrics, self.tokenizer = metrics, tokenizer

    def lacks(self, model: nn.Module) -> str:
        """A decoder."""
        if not isinstance(model, Writer):
            return "generate (blip, captioner and vqvlm write captions)"
        return untrained(model, "lm")

    def check(self, model: nn.Module, pairs: Pairs) -> None:
        """Also what the metrics need; before the captions are written."""
        super().check(model, pairs)
        usable(self.metrics, self.tokenizer)

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``captioning/bleu1`` to ``bleu4``, ``meteor``, ``rouge_l``, ``cider``, ``spice``, and how many ``images``."""
        self.check(model, pairs)
        dataset = PairsDataset.seen_by(cast(Writer, model), pairs)
        _, rows = np.unique(dataset.image_ids, return_index=True)
        references: list[list[str]] = [[] for _ in rows]
        for image_id, caption in zip(dataset.image_ids.tolist(), pairs.captions.to_pylist(), strict=True):
            references[image_id].append(caption)
        with evaluating(model):
            captions = self._write(cast(Writer, model), dataset, rows)
        scores = score_captions(captions, references, metrics=self.metrics, tokenizer=self.tokenizer)
        ids = pairs.table["image_id" if "image_id" in pairs.table.column_names else "image"]
        self.details = [
            {
                "image_id": ids[row].as_py(),
                "caption": captions[number],
                "image": pairs.images[row].as_py(),
                "references": references[number],
                **{name: round(values[number], 2) for name, values in scores.each.items()},
            }
            for number, row in enumerate(rows.tolist())
        ]
        named = {f"captioning/{name}": value for name, value in scores.overall.items()}
        return {**named, "captioning/images": len(captions)}

    def _write(self, model: Writer, dataset: PairsDataset, rows: np.ndarray) -> list[str]:
        captions: list[str] = []
        loader = ordered_loader(
            Subset(dataset, rows.tolist()), batch_size=self.batch_size, num_workers=self.num_workers
        )
        with self.bar("write captions", len(rows), " images") as bar:
            for batch in loader:
                captions += model.generate(batch["images"].to(model.device), **self.options)
                bar.update(len(batch["captions"]))
        return captions
