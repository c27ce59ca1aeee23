"""The codebook between image encoder and text decoder (van den Oord et al. 2017; TL;DR section 3.1).

Every image token z is replaced by its nearest code e; the gradient passes by the rotation trick (Fifty et al. 2024,
arXiv 2410.06424), codes follow their tokens by moving average, and codes that fall out of use are revived.

The codebook joins ``after`` training steps: from step 0 it starves the decoder of the picture while the decoder is
still learning grammar, and the captioner then grounds far less (measured: see docs/method.md). It begins from

    keywords  the corpus's most frequent words and phrases, as the paper does: their text embeddings, moved to the mean
              and the scale of the image tokens (an untrained pair of encoders shares no space otherwise)
    kmeans    the centroids of the tokens seen
    random    tokens drawn at random

Shapes: B pictures, L tokens, D width, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import sample_vectors_distributed

from tldr.cluster import KMeans
from tldr.nn.processes import connected

INITS = ("keywords", "kmeans", "random")
_COLLECT = 8  # batches of tokens that an initialisation learns from


class Quantizer(nn.Module):
    """(B, L, D) tokens -> their codes."""

    active: Tensor

    def __init__(
        self,
        width: int,
        *,
        codebook_size: int,
        init: str = "keywords",
        after: int = 0,
        decay: float = 0.9,
        commitment: float = 0.25,
        dead_below: int = 1,
        rotation_trick: bool = True,
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"quantizer.init={init!r}; choose from {', '.join(INITS)}")
        if not 1 < codebook_size <= 65_536:
            raise ValueError(
                f"quantizer.codebook_size={codebook_size}; codes are stored as uint16, 2 to 65,536 of them"
            )
        self.codebook_size, self.init, self.after = codebook_size, init, after
        self.vq = VectorQuantize(
            width,
            codebook_size,
            decay=decay,
            commitment_weight=commitment,
            threshold_ema_dead_code=dead_below,
            rotation_trick=rotation_trick,
            kmeans_init=False,
        )
        self.register_buffer("active", torch.tensor(False))
        self.transient: list[Tensor] = []  # tokens seen: a checkpoint to go on from keeps them (`tldr.model.base`)

    @property
    def codebook(self) -> Tensor:
        """(K, D) code vectors."""
        return self.vq.codebook

    def share(self) -> None:
        """From now on all processes have one codebook, which follows the tokens of all. It is built before they know of
        each other, and has to be told."""
        if connected():
            book: Any = self.vq._codebook
            book.use_ddp, book.all_reduce_fn = True, torch.distributed.all_reduce
            book.replace_sample_fn = sample_vectors_distributed

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> quantised (B, L, D), codes (B, L), commitment loss. Before it is active, tokens pass
        unchanged."""
        if not self.active:
            codes = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
            return tokens, codes, tokens.new_zeros(())
        quantised, codes, loss = self.vq(tokens)
        return quantised, codes, loss.sum()

    def observe(self, tokens: Tensor, step: int) -> bool:
        """Remember tokens shortly before ``after``; True when it is time to `initialise`."""
        if self.active:
            return False
        if step > self.after - _COLLECT:
            self.transient.append(tokens.detach().flatten(0, 1).float())
        return step >= self.after

    @torch.no_grad()
    def initialise(self, keywords: Tensor | None = None) -> None:
        """Set the codes from the tokens that were observed and, for ``init=keywords``, (M, D) text embeddings."""
        world = torch.distributed.get_world_size() if connected() else 1
        seen, fair = torch.cat(self.transient), world * len(self.transient[-1]) / self.codebook_size
        self.transient = []
        if self.init == "keywords":
            if keywords is None or len(keywords) == 0:
                raise ValueError("quantizer.init=keywords, but no keywords were found: choose kmeans or random")
            spread = keywords.std(0, correction=0).clamp_min(1e-6)  # not NaN for one keyword
            scaled = (keywords - keywords.mean(0)) / spread * seen.std(0) + seen.mean(0)
            # A small corpus has fewer keywords than the codebook has codes: tokens fill the rest.
            codes = torch.cat([scaled, _draw(seen, self.codebook_size)])[: self.codebook_size]
        elif self.init == "kmeans" and len(seen) >= self.codebook_size:
            centroids = KMeans.fit(seen.cpu().numpy(), self.codebook_size, seed=0).centroids
            codes = torch.from_numpy(centroids).to(seen.device)
        else:
            codes = _draw(seen, self.codebook_size)
        if connected():
            torch.distributed.broadcast(codes := codes.contiguous(), 0)
        self.vq.codebook = codes
        # The moving average rebuilds codes from embed_avg / cluster_size: set both, or the first step undoes the init.
        book: Any = self.vq._codebook
        # Every code begins with a fair share of a batch: one with less would be revived before a token could choose it.
        book.cluster_size.fill_(max(1.0, fair))
        book.embed_avg.copy_(book.embed * max(1.0, fair))
        self.active.fill_(True)

    @torch.no_grad()
    def usage(self, codes: Tensor) -> dict[str, Tensor]:
        """Perplexity of the codes (...,) of a batch, and the share of the codebook that they use."""
        share = torch.bincount(codes.flatten(), minlength=self.codebook_size).float() / codes.numel()
        entropy = -(share * share.clamp_min(1e-12).log()).sum()
        return {"perplexity": entropy.exp(), "used": (share > 0).float().mean()}


def _draw(tokens: Tensor, count: int) -> Tensor:
    """(count, D) of (n, D) tokens, evenly spread over the batches seen."""
    rows = torch.linspace(0, len(tokens) - 1, count, device=tokens.device).long()
    noise = 1e-3 * tokens.std() * torch.randn(count, tokens.shape[1], device=tokens.device)
    return tokens[rows] + noise  # equal codes would share their tokens for ever
