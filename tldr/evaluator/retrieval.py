"""Image-text retrieval: TR@k looks for a caption of an image among all captions, IR@k for the image of a caption.

As COCO and Flickr30k count: pairs with the same picture are one image with several captions; TR@k is the share of
images with any of their own captions among the first k, IR@k the share of captions with their own image there. Only an
image's own captions count, whatever else would fit. Equal scores are taken in random order (`tldr.metric.rank`).

Shapes: Q queries (of one chunk), K keys (the gallery), E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.evaluator.base import (
    DualEncoder,
    Evaluator,
    Matcher,
    as_dual,
    as_matcher,
    check_matches,
    embed_texts,
    evaluating,
    matching,
    unfit_to_compare,
)
from tldr.metric.rank import hit_probability, match_all, rerank
from tldr.pairs import Pairs

RANKS = (1, 5, 10)
_CHUNK = 1 << 24  # scores in memory at a time

# Numbers (Q,) of queries to their scores (Q, K).
Score = Callable[[Tensor], Tensor]


class Retrieval(Evaluator):
    """Recall in percent of a model that embeds pictures and texts or, where it does not, matches them.

    ``rerank_k`` > 0 (BLIP: 256 on COCO, 128 on Flickr30k) scores each query's best ``rerank_k`` again, by the log-odds
    of `match` plus the similarity, and puts them before the others. All image tokens are then kept in memory (9 GB for
    COCO's 5,000 at 384 pixels in patches of 16). BLIP's code adds the score of *match* alone; its loss determines no
    more than the difference to that of *no match*, which is the log-odds.

    A model without embeddings (ViLT) is asked about every picture with every caption, at most ``max_matches`` times:
    Flickr30k's test set takes 5 million, COCO's 125 million.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        rerank_k: int = 0,
        max_matches: int = 10_000_000,
        progress: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, progress=progress)
        self.rerank_k, self.max_matches = rerank_k, max_matches

    def lacks(self, model: nn.Module) -> str:
        """Embeddings, or the judgement of pairs; both to re-rank."""
        dual, matcher = isinstance(model, DualEncoder), isinstance(model, Matcher)
        if self.rerank_k and not matcher:
            return f"image_tokens and match, which rerank_k={self.rerank_k} needs (blip has them)"
        if self.rerank_k and not dual:
            return f"embed_images and embed_texts, which rerank_k={self.rerank_k} needs (rerank_k=0 matches all pairs)"
        return unfit_to_compare(model, rerank=bool(self.rerank_k))

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``retrieval/tr@1`` to ``ir@10``, their ``mean``, and how many ``images`` and ``texts`` there are."""
        self.check(model, pairs)
        dataset = PairsDataset.seen_by(as_dual(model), pairs)
        captions: list[str] = pairs.captions.to_pylist()
        with evaluating(model):
            embeds = isinstance(model, DualEncoder)
            ways = self._by_embedding(model, dataset, captions) if embeds else self._by_match(model, dataset, captions)
            text_ids = torch.as_tensor(dataset.image_ids)
            image_ids = torch.arange(int(text_ids.max()) + 1)
            found = {
                "tr": self._recalls("tr", ways[0], image_ids, text_ids),
                "ir": self._recalls("ir", ways[1], text_ids, image_ids),
            }
        named = {f"retrieval/{way}@{k}": 100 * share for way, shares in found.items() for k, share in shares.items()}
        mean = sum(named.values()) / len(named)
        return {**named, "retrieval/mean": mean, "retrieval/images": len(image_ids), "retrieval/texts": len(captions)}

    def _by_embedding(self, model: nn.Module, dataset: PairsDataset, captions: list[str]) -> tuple[Score, Score]:
        """The scores of images for texts and of texts for images: cosines, re-ranked where that is asked for."""
        images, tokens = self._images(model, dataset, embed=True, keep=self.rerank_k > 0)
        with self.bar("embed texts", len(captions), " texts") as bar:
            texts = embed_texts(as_dual(model), captions, batch_size=self.batch_size, bar=bar)
        match = matching(as_matcher(model), tokens, captions)

        def similar(queries: Tensor, keys: Tensor, swapped: bool) -> Score:
            def score(rows: Tensor) -> Tensor:
                rows = rows.to(queries.device)
                scores = queries[rows] @ keys.T  # (Q, K)
                if not self.rerank_k:
                    return scores
                return rerank(scores, rows, (lambda a, b: match(b, a)) if swapped else match, k=self.rerank_k)

            return score

        return similar(images, texts, False), similar(texts, images, True)

    def _by_match(self, model: nn.Module, dataset: PairsDataset, captions: list[str]) -> tuple[Score, Score]:
        """The same of a model that only matches: every picture with every caption, once for both ways."""
        pictures = int(dataset.image_ids.max()) + 1
        check_matches(pictures * len(captions), self.max_matches, "retrieval")
        _, tokens = self._images(model, dataset, embed=False, keep=True)
        with self.bar("match", pictures * len(captions), " pairs") as bar:
            match = matching(as_matcher(model), tokens, captions)
            scores = match_all(match, pictures, len(captions), batch_size=self.batch_size, seen=bar.update)
        return (lambda rows: scores[rows]), (lambda rows: scores.T[rows])

    def _images(self, model: nn.Module, dataset: PairsDataset, *, embed: bool, keep: bool) -> tuple[Tensor, Tensor]:
        """(K, E) embeddings of the pictures, each seen once, and their (K, L, D) tokens, on the CPU: those asked
        for."""
        _, rows = np.unique(dataset.image_ids, return_index=True)  # they are numbered from 0
        loader = ordered_loader(
            Subset(dataset, rows.tolist()), batch_size=self.batch_size, num_workers=self.num_workers
        )
        embeddings, tokens = [], []
        with self.bar("see images", len(rows), " images") as bar:
            for batch in loader:
                images = batch["images"].to(as_dual(model).device)
                if embed:
                    embeddings.append(as_dual(model).embed_images(images).float())
                if keep:
                    tokens.append(as_matcher(model).image_tokens(images).cpu())
                bar.update(len(images))
        nothing = torch.empty(0)
        return torch.cat(embeddings) if embed else nothing, torch.cat(tokens) if keep else nothing

    def _recalls(self, way: str, score: Score, query_ids: Tensor, key_ids: Tensor) -> dict[int, float]:
        """k -> the share of queries with a key of their own id among the first k."""
        step = max(1, (self.batch_size // self.rerank_k if self.rerank_k else _CHUNK // len(key_ids)))
        hits = torch.zeros(len(RANKS), dtype=torch.float64)
        with self.bar(f"rank {way}", len(query_ids), " queries") as bar:
            for start in range(0, len(query_ids), step):
                rows = torch.arange(start, min(start + step, len(query_ids)))
                scores = score(rows)
                own = (query_ids[rows, None] == key_ids).to(scores.device)
                hits += hit_probability(scores, own, RANKS).sum(0).cpu()
                bar.update(len(rows))
        return dict(zip(RANKS, (hits / len(query_ids)).tolist(), strict=True))
