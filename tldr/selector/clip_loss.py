"""negCLIPLoss, formerly s-CLIPLoss (Wang et al. 2024, arXiv 2405.19547): the CLIP score, less what the pair's picture
and caption score with others.

    s_ii - T/2 [log sum_j exp(s_ij / T) + log sum_j exp(s_ji / T)]

over the j of a random batch that contains i, averaged over several random divisions of the pool into batches. A caption
that fits every picture scores high with all of them and loses that here. T is the temperature at which OpenAI's CLIP
ended, and the batch size is also OpenAI's. A CLIP trained here for a few hundred steps ends at 0.06 to 0.08, but even
then T = 0.01 detects wrong captions better: at 0.0765 the AUC of thirteen such CLIPs was 0.005 to 0.02 lower.

Shapes: N pairs, B of a batch, E width of the embedding.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from tldr.ledger import metered
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, above_zero, best, counts
from tldr.signal.sphere import cosines, unit_rows
from tldr.signal.store import Signals

_BLOCK = 1024  # pictures compared with a batch of captions at once: 128 MiB for 32,768 of them


class ClipLoss(Selector):
    """The best by negCLIPLoss over embeddings of the dual encoder ``scorer``, at ``temperature``, in batches of
    ``batch_size`` (the pool divided evenly; a smaller pool is one batch) and the mean of ``shuffles`` divisions."""

    def __init__(
        self, *, scorer: str = "clip", temperature: float = 0.01, batch_size: int = 32_768, shuffles: int = 10
    ) -> None:
        above_zero(temperature=temperature)
        counts(2, batch_size=batch_size)
        counts(1, shuffles=shuffles)
        self.temperature, self.batch_size, self.shuffles = temperature, batch_size, shuffles
        self.needs = (f"{scorer}.embedding", f"{scorer}.text_embedding")

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Divide the pool ``shuffles`` times, average, and keep the top."""
        assert signals is not None
        rows = [unit_rows(pool, signals, name) for name in self.needs]
        score, (image, text) = cosines(*rows), map(torch.from_numpy, rows)
        batches = -(-len(pool) // self.batch_size)
        rng, total = np.random.default_rng(seed), np.zeros(len(pool))
        times = self.shuffles if batches > 1 else 1  # one batch is the same however it is shuffled
        with metered(device=self.device):
            for rows in chain.from_iterable(np.array_split(rng.permutation(len(pool)), batches) for _ in range(times)):
                total[rows] += self.normaliser(image[torch.from_numpy(rows)], text[torch.from_numpy(rows)])
        others = (total / times).astype(np.float32)
        merit = score - others
        rows, cut = best(merit, keep)
        reasons = [
            f"negCLIPLoss {m:.4g}: CLIP score {s:.3g} less {o:.3g} for the batch; cut at {cut:.4g}"
            for m, s, o in zip(merit, score, others, strict=True)
        ]
        return Selection(rows, reasons, {"clip_loss": merit, "clip_score": score}, merit)

    def normaliser(self, image: Tensor, text: Tensor) -> np.ndarray:
        """(B,) what is taken from the score in a batch of unit vectors (B, E), in blocks of its pictures."""
        image, text = image.to(self.device), text.to(self.device)
        by_image, by_text = [], torch.full((len(text),), -torch.inf, device=self.device)
        for block in image.split(_BLOCK):
            logits = block @ text.T / self.temperature  # (b, B)
            by_image.append(logits.logsumexp(1))
            by_text = torch.logaddexp(by_text, logits.logsumexp(0))
        return (self.temperature / 2 * (torch.cat(by_image) + by_text)).cpu().numpy()
