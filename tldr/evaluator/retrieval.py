"""Image-text retrieval: TR@k looks for a caption of an image among all captions, IR@k for the image of a caption.

As COCO and Flickr30k count: pairs with the same picture are one image with several captions; TR@k is the share of
images with any of their own captions among the first k, IR@k the share of captions with their own image there. Only an
image's own captions count, whatever else would fit.

Equal scores are in no order, and a sort would invent one (a constant embedding then scores what the order of the file
gives it). They are taken in random order, in expectation: a constant embedding scores exactly chance.

Shapes: Q queries (of one chunk), K keys (the gallery), E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.evaluator.base import Evaluator, evaluating
from tldr.pairs import Pairs

RANKS = (1, 5, 10)
TIE = 1e-6  # scores no further apart are equal: rounding depends on the batch
_CHUNK = 1 << 24  # scores in memory at a time


class DualEncoder(Protocol):
    """What retrieval asks of a model; embeddings are unit vectors."""

    image_size: int
    device: torch.device

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, E)."""
        ...

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, E)."""
        ...


@runtime_checkable
class Matcher(Protocol):
    """What re-ranking asks besides."""

    def image_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, L, D)."""
        ...

    def match(self, image_tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, L, D) and B captions -> (B,) log-odds that they belong together."""
        ...


# Numbers of queries and of keys, (n,) each, to the log-odds (n,) that these belong together.
Match = Callable[[Tensor, Tensor], Tensor]


class Retrieval(Evaluator):
    """Recall in percent of a model that has `embed_images` and `embed_texts`.

    ``rerank_k`` > 0 (BLIP: 256 on COCO, 128 on Flickr30k) scores each query's best ``rerank_k`` again, by the log-odds
    of `match` plus the similarity, and puts them before the others. All image tokens are then kept in memory (9 GB for
    COCO's 5,000 at 384 pixels in patches of 16). BLIP's code adds the score of *match* alone; its loss determines no
    more than the difference to that of *no match*, which is the log-odds.
    """

    def __init__(self, *, batch_size: int = 64, num_workers: int = 0, rerank_k: int = 0, progress: bool = True) -> None:
        self.batch_size, self.num_workers, self.rerank_k = batch_size, num_workers, rerank_k
        self.progress = progress

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``retrieval/tr@1`` to ``ir@10``, their ``mean``, and how many ``images`` and ``texts`` there are."""
        if not len(pairs):
            raise ValueError("retrieval needs pairs to evaluate on, and there are none")
        if self.rerank_k and not isinstance(model, Matcher):
            raise ValueError(f"rerank_k={self.rerank_k} needs a model that matches pairs, as blip; not {type(model)}")
        dual = cast(DualEncoder, model)
        dataset = PairsDataset(pairs, image_size=dual.image_size)
        captions: list[str] = pairs.captions.to_pylist()
        with evaluating(model):
            images, tokens = self._images(dual, dataset)
            texts = self._texts(dual, captions)
            image_ids = torch.arange(len(images), device=images.device)
            text_ids = torch.as_tensor(dataset.image_ids, device=images.device)

            def match(image: Tensor, text: Tensor) -> Tensor:
                needed, places = image.cpu().unique(return_inverse=True)  # one picture, many texts: move it once
                chosen = tokens[needed].to(images.device)[places.to(images.device)]
                return cast(Matcher, model).match(chosen, [captions[row] for row in text.tolist()])

            found = {
                "tr": self._recalls("tr", images, texts, image_ids, text_ids, match),
                "ir": self._recalls("ir", texts, images, text_ids, image_ids, lambda text, image: match(image, text)),
            }
        named = {f"retrieval/{way}@{k}": 100 * share for way, shares in found.items() for k, share in shares.items()}
        mean = sum(named.values()) / len(named)
        return {**named, "retrieval/mean": mean, "retrieval/images": len(images), "retrieval/texts": len(texts)}

    def _images(self, dual: DualEncoder, dataset: PairsDataset) -> tuple[Tensor, Tensor]:
        """(K, E) embeddings of the pictures, each seen once, and for re-ranking their (K, L, D) tokens, on the CPU."""
        _, rows = np.unique(dataset.image_ids, return_index=True)  # they are numbered from 0
        loader = ordered_loader(
            Subset(dataset, rows.tolist()), batch_size=self.batch_size, num_workers=self.num_workers
        )
        embeddings, tokens = [], []
        with self._bar("embed images", len(rows), " images") as bar:
            for batch in loader:
                images = batch["images"].to(dual.device)
                embeddings.append(dual.embed_images(images).float())
                if self.rerank_k:
                    tokens.append(cast(Matcher, dual).image_tokens(images).cpu())
                bar.update(len(images))
        return torch.cat(embeddings), torch.cat(tokens) if tokens else torch.empty(0)

    def _texts(self, dual: DualEncoder, captions: Sequence[str]) -> Tensor:
        """(K, E) embeddings of the captions."""
        embeddings = []
        with self._bar("embed texts", len(captions), " texts") as bar:
            for start in range(0, len(captions), self.batch_size):
                embeddings.append(dual.embed_texts(captions[start : start + self.batch_size]).float())
                bar.update(len(embeddings[-1]))
        return torch.cat(embeddings)

    def _recalls(
        self, way: str, queries: Tensor, keys: Tensor, query_ids: Tensor, key_ids: Tensor, match: Match
    ) -> dict[int, float]:
        """k -> the share of queries with a key of their own id among the first k."""
        step = max(1, (self.batch_size // self.rerank_k if self.rerank_k else _CHUNK // len(keys)))
        hits = torch.zeros(len(RANKS), dtype=torch.float64, device=queries.device)
        with self._bar(f"rank {way}", len(queries), " queries") as bar:
            for start in range(0, len(queries), step):
                rows = torch.arange(start, min(start + step, len(queries)), device=queries.device)
                scores = queries[rows] @ keys.T  # (Q, K)
                if self.rerank_k:
                    scores = rerank(scores, rows, match, k=self.rerank_k)
                hits += hit_probability(scores, query_ids[rows, None] == key_ids, RANKS).sum(0)
                bar.update(len(rows))
        return dict(zip(RANKS, (hits / len(queries)).tolist(), strict=True))

    def _bar(self, name: str, total: int, unit: str) -> Any:
        return tqdm(total=total, desc=name, unit=unit, disable=not self.progress, leave=False)


def rerank(scores: Tensor, rows: Tensor, match: Match, *, k: int) -> Tensor:
    """(Q, K) similarities of the queries numbered ``rows`` -> the same with the log-odds of ``match`` added to each
    query's best ``k``; the others follow behind in their order."""
    best = scores.topk(min(k, scores.shape[1]), 1)
    odds = match(rows.repeat_interleave(best.indices.shape[1]), best.indices.flatten())
    behind = scores.double() - 1e6
    return behind.scatter(1, best.indices, (best.values + odds.view_as(best.values)).double())


def hit_probability(scores: Tensor, own: Tensor, ranks: Sequence[int]) -> Tensor:
    """(Q, K) scores, (Q, K) bool -> (Q, R) how likely one of a query's ``own`` keys is among its first k, for each of R
    ranks k: 0 or 1, unless the best own key ties with others. A score that is not a number beats all own ones.
    """
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    tie = (scores - best).abs() <= TIE
    better = ~tie & ~own & ~(scores < best)
    others, mine = (tie & ~own).sum(1).double(), (tie & own).sum(1).double()
    places = torch.tensor(ranks, device=scores.device) - better.sum(1, keepdim=True)  # (Q, R) left for those who tie
    # Of others + mine keys in random order, the first j are all others with probability prod (others - i) / (all - i).
    i = torch.arange(max(ranks), device=scores.device)
    miss = ((others[:, None] - i) / (others + mine)[:, None].sub(i).clamp_min(1)).clamp_min(0)  # (Q, max k)
    missed = torch.cat([torch.ones_like(miss[:, :1]), miss.cumprod(1)], 1)  # (Q, 1 + max k) after j places
    return 1 - missed.gather(1, places.clamp(0, max(ranks)))
