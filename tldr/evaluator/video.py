"""Zero-shot text-to-video retrieval, as BLIP's on MSRVTT (Li et al. 2022, arXiv 2201.12086, section 5.6): an image-text
model sees a few frames of each clip, in equal steps, and knows nothing of time.

A clip's embedding is the mean of its frames' (of unit vectors; BLIP's code brings only the mean to length 1); to match
it with a text, the frames' tokens are put one after the other.
Recall counts the texts with their own clip among the first k; the median rank is the usual companion.

Shapes: Q texts, K clips, F frames of a clip, L tokens of a frame, D width, E embedding width.
"""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tldr.data.images import ImageError, ImageStore
from tldr.data.loading import Viewer, transform
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
from tldr.metric.rank import expected_rank, hit_probability, match_all, rerank
from tldr.pairs import Pairs

RANKS = (1, 5, 10)
_FRAME = re.compile(r"(?P<clip>.+)#frame=\d+/\d+", re.DOTALL)


class Clips(Dataset[Tensor]):
    """(F, 3, H, W) uint8 frames of each clip."""

    def __init__(self, clips: list[str], root: str, *, frames: int, model: Viewer) -> None:
        self.clips, self.frames = clips, frames
        self.store, self.transform = ImageStore(root), transform(model.image_size, resize_mode=model.resize_mode)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> Tensor:
        places = [f"{self.clips[number]}#frame={i}/{self.frames}" for i in range(self.frames)]
        try:
            return torch.stack([self.transform(self.store.load(place)) for place in places])
        except ImageError as failure:
            raise ValueError(f"video: {failure}") from failure


class Video(Evaluator):
    """A pair's image is a frame of a clip, ``clip.mp4#frame=0/8``; whichever it is, ``frames`` of the clip are taken.

    ``rerank_k`` (BLIP: 128) as in retrieval; a clip has as many tokens as all its frames, which are kept in memory. A
    model without embeddings is asked about every clip with every text, at most ``max_matches`` times.
    """

    task = "video"
    sources = "data=msrvtt"

    def __init__(
        self,
        *,
        frames: int = 8,
        batch_size: int = 8,
        num_workers: int = 0,
        rerank_k: int = 0,
        max_matches: int = 2_000_000,
        progress: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, progress=progress)
        if frames < 1:
            raise ValueError(f"evaluator.video.frames={frames} must be at least 1")
        self.frames, self.rerank_k, self.max_matches = frames, rerank_k, max_matches

    def lacks(self, model: nn.Module) -> str:
        """Embeddings, or the judgement of pairs; both to re-rank."""
        dual, matcher = isinstance(model, DualEncoder), isinstance(model, Matcher)
        if self.rerank_k and not (dual and matcher):
            return f"embed_images, embed_texts, image_tokens and match, all of which rerank_k={self.rerank_k} needs"
        return unfit_to_compare(model, rerank=bool(self.rerank_k))

    def check(self, model: nn.Module, pairs: Pairs) -> None:
        """Also that the pictures are frames."""
        super().check(model, pairs)
        if _FRAME.fullmatch(pairs.images[0].as_py()) is None:
            raise ValueError(
                f"video reads clips, and {pairs.images[0].as_py()!r} is not a frame of one (clip.mp4#frame=0/8). "
                f"Use data with clips: {self.sources}"
            )

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``video/r@1``, ``r@5``, ``r@10`` in percent, ``median_rank``, and how many ``clips`` and ``texts``."""
        self.check(model, pairs)
        matches = [_FRAME.fullmatch(image) for image in pairs.images.to_pylist()]
        named = [match["clip"] for match in matches if match]
        if len(named) < len(pairs):
            raise ValueError(f"video: {len(pairs) - len(named)} of {len(pairs)} pictures are no frames of clips")
        clips, own = np.unique(np.asarray(named, dtype=object), return_inverse=True)
        captions: list[str] = pairs.captions.to_pylist()
        with evaluating(model):
            scores = self._scores(model, clips.tolist(), pairs.root, captions)  # (Q, K)
        right = F.one_hot(torch.from_numpy(own), len(clips)).bool().to(scores.device)
        recalls = 100 * hit_probability(scores, right, RANKS).mean(0)
        found = {f"video/r@{k}": float(recall) for k, recall in zip(RANKS, recalls, strict=True)}
        middle = float(np.median(expected_rank(scores, right).cpu().numpy()))
        return {**found, "video/median_rank": middle, "video/clips": len(clips), "video/texts": len(captions)}

    def _scores(self, model: nn.Module, clips: list[str], root: str, captions: list[str]) -> Tensor:
        """(Q, K) how well each clip fits each text."""
        embeds = isinstance(model, DualEncoder)
        if not embeds:
            check_matches(len(clips) * len(captions), self.max_matches, "video")
        embedded, tokens = self._clips(model, clips, root, embed=embeds, keep=self.rerank_k > 0 or not embeds)
        match = matching(as_matcher(model), tokens, captions)
        if not embeds:
            with self.bar("match", len(clips) * len(captions), " pairs") as bar:
                by_text = lambda text, clip: match(clip, text)  # noqa: E731
                return match_all(by_text, len(captions), len(clips), batch_size=self.batch_size, seen=bar.update)
        with self.bar("embed texts", len(captions), " texts") as bar:
            texts = embed_texts(as_dual(model), captions, batch_size=64, bar=bar)
        scores = texts @ embedded.T
        if not self.rerank_k:
            return scores
        parts = []
        step = max(1, self.batch_size // self.rerank_k)
        with self.bar("match", len(captions), " texts") as bar:
            for rows in torch.arange(len(captions), device=scores.device).split(step):
                parts.append(rerank(scores[rows], rows, lambda text, clip: match(clip, text), k=self.rerank_k))
                bar.update(len(rows))
        return torch.cat(parts)

    def _clips(
        self, model: nn.Module, clips: list[str], root: str, *, embed: bool, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """(K, E) embeddings of the clips and their (K, F * L, D) tokens, on the CPU: those asked for."""
        dual = as_dual(model)
        dataset = Clips(clips, root, frames=self.frames, model=dual)
        embeddings, tokens = [], []
        with self.bar("see clips", len(clips), " clips") as bar:
            for frames in DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers):
                images = frames.to(dual.device).flatten(0, 1)  # (B * F, 3, H, W)
                if embed:
                    mean = dual.embed_images(images).float().unflatten(0, (-1, self.frames)).mean(1)
                    embeddings.append(F.normalize(mean, dim=-1))
                if keep:
                    seen = as_matcher(model).image_tokens(images).cpu()  # (B * F, L, D)
                    tokens.append(seen.unflatten(0, (-1, self.frames)).flatten(1, 2))
                bar.update(len(frames))
        nothing = torch.empty(0)
        return torch.cat(embeddings) if embed else nothing, torch.cat(tokens) if keep else nothing
