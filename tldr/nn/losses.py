"""The losses, as pure functions: tensors in, scalars out.

Shapes: B pairs of the batch, Q entries of a queue, T text tokens, V vocabulary, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-4  # of a negative's weight, in BLIP's pre-training


def token_nll(logits: Tensor, targets: Tensor, mask: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """(B, T, V), (B, T), (B, T) bool -> (B,) negative log-likelihood of each text, summed over its tokens."""
    nll = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return (nll.view_as(targets) * mask).sum(1)


def lm_loss(logits: Tensor, targets: Tensor, mask: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean negative log-likelihood per real token of (B, T, V) next-word scores."""
    flat = logits.flatten(0, 1)[mask.flatten()]
    return F.cross_entropy(flat.float(), targets[mask], label_smoothing=label_smoothing)


def similarity(queries: Tensor, keys: Tensor) -> Tensor:
    """(B, D) and (Q, D) -> (B, Q) dot products in float32, under autocast too: at a temperature of 0.01 the rounding of
    bfloat16 would move a logit by 0.2."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries.float() @ keys.float().T


def info_nce(image: Tensor, text: Tensor, scale: Tensor, all_image: Tensor, all_text: Tensor, rank: int) -> Tensor:
    """Symmetric InfoNCE of CLIP (Radford et al. 2021) for (B, D) unit embeddings of this process.

    ``all_image`` and ``all_text`` (world * B, D) are those of all processes, this one's at ``rank * B``.
    """
    targets = torch.arange(len(image), device=image.device) + rank * len(image)
    image_loss = F.cross_entropy(scale * similarity(image, all_text), targets)
    text_loss = F.cross_entropy(scale * similarity(text, all_image), targets)
    return (image_loss + text_loss) / 2


def sigmoid_loss(image: Tensor, all_text: Tensor, scale: Tensor, bias: Tensor, rank: int) -> Tensor:
    """SigLIP's loss: (B, E) images of this process, (world * B, E) texts of all, this one's at ``rank * B``.

    The sum over all pairs, per image: the mean of it over the processes is the loss of the whole batch.
    """
    logits = scale * similarity(image, all_text) + bias  # (B, world * B)
    place = torch.arange(len(image), device=image.device)
    sign = torch.full_like(logits, -1.0).index_put((place, place + rank * len(image)), logits.new_ones(()))
    return -F.logsigmoid(sign * logits).sum() / len(image)


def distilled_targets(teacher: Tensor, positive: Tensor, alpha: float) -> Tensor:
    """(B, Q) target distributions of BLIP's ITC, as ALBEF's (Li et al. 2021, arXiv 2107.07651).

    alpha * softmax(``teacher`` (B, Q) logits) + (1 - alpha) * the uniform distribution over ``positive`` (B, Q) keys.
    """
    hard = positive / positive.sum(1, keepdim=True)
    return alpha * F.softmax(teacher.detach().float(), 1) + (1 - alpha) * hard


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of (B, Q) scores with (B, Q) target distributions (BLIP's ITC with momentum targets)."""
    return -(F.log_softmax(logits.float(), 1) * targets).sum(1).mean()


def hard_negatives(
    logits: Tensor,
    positive: Tensor,
    generator: torch.Generator | None = None,
    *,
    first: int = 0,
    floor: float = FLOOR,
) -> Tensor:
    """(B, Q) scores -> (B,) for each row the column of a negative, drawn in proportion to the row's softmax plus
    ``floor`` (BLIP: 1e-4 in pre-training, 0 in fine-tuning for retrieval).

    ``positive`` (B, Q) is True where row and column belong together (the same picture): never drawn. The row's own
    column is ``first`` + row.
    """
    scores, lonely = logits.detach().float(), positive.all(1)
    if not floor:  # the same proportions, but no positive can push the others to 0 at a low temperature
        scores = scores.masked_fill(positive & ~lonely[:, None], -torch.inf)
    weights = (F.softmax(scores, 1) + floor).masked_fill(positive, 0)
    if lonely.any():  # a batch whose texts all belong to one picture: any other column then
        weights[lonely] = 1e-4
        weights.diagonal(first)[: len(weights)].zero_()
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)
