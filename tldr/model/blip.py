"""BLIP pre-training (Li et al., ICML 2022, arXiv 2201.12086, section 3.2).

    ITC  unimodal embeddings agree: contrast with the keys that a momentum copy, the teacher, gives this batch and gave
         those in a queue; a part alpha of the target is the teacher's judgement (ALBEF, arXiv 2107.07651)
    ITM  the image-grounded encoder tells B pairs from 2B hard negatives, which the ITC logits propose
    LM   the image-grounded decoder writes the caption

One text transformer plays all three roles; its decoder differs in self-attention only. Where the published code assumes
millions of pictures, each seen once in a long while, ours may be few and have several captions: another caption of a
picture counts as its positive in ITC (as in ALBEF's fine-tuning for retrieval) and is no negative in ITM. With distinct
pictures and captions the losses are the published ones.

Shapes: B pairs of this process, M keys (B of the batch and those in the queue), L image tokens, T text tokens, D width,
E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import Model
from tldr.nn.generate import generate
from tldr.nn.losses import distilled_targets, hard_negatives, lm_loss, similarity, soft_cross_entropy
from tldr.nn.momentum import Queue, follow, momentum_copy
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder

POOLINGS = ("cls", "mean")
TEMPERATURES = (0.001, 0.5)


class Encoders(nn.Module):
    """Both unimodal encoders and their projections: what the momentum copy is a copy of."""

    def __init__(self, image: ImageEncoder, text: TextTransformer, embed_dim: int, text_pooling: str) -> None:
        super().__init__()
        if text_pooling not in POOLINGS:
            raise ValueError(f"text_pooling={text_pooling!r}; choose from {', '.join(POOLINGS)}")
        self.image, self.text, self.text_pooling = image, text, text_pooling
        self.image_projection = nn.Linear(image.width, embed_dim)
        self.text_projection = nn.Linear(text.width, embed_dim)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> tokens (B, L, D) and unit embeddings (B, E)."""
        tokens = self.image(images)
        return tokens, F.normalize(self.image_projection(self.image.pool(tokens)).float(), dim=-1)

    def encode_texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) -> (B, E) unit embeddings."""
        hidden = self.text(tokens, mask)
        if self.text_pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.text_projection(pooled).float(), dim=-1)


class Blip(Model):
    """``image`` and ``text`` are the arguments of `ImageEncoder` and `TextTransformer`; ``tokenizer`` is a `Tokenizer`
    as JSON. ``alpha`` is reached in ``alpha_ramp`` of the run's steps (published: in 2 of 20 epochs).

    The defaults are the published ones, made for long runs from pre-trained encoders. A short run from scratch wants
    others (``conf/model/blip.yaml`` has figures): the mean of the text's tokens instead of [CLS], a faster teacher, and
    no queue, whose entries are soon so old that they are told from the batch by their age, not by what they show.
    """

    def __init__(
        self,
        *,
        tokenizer: str,
        image: Mapping[str, Any],
        text: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        embed_dim: int = 256,
        text_pooling: str = "cls",
        queue_size: int = 57_600,
        momentum: float = 0.995,
        temperature: float = 0.07,
        alpha: float = 0.4,
        alpha_ramp: float = 0.1,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters()
        self.tokenizer = Tokenizer(tokenizer)
        image_encoder = ImageEncoder(**image)
        width, self.image_size = image_encoder.width, image_encoder.image_size
        text_model = TextTransformer(len(self.tokenizer), image_width=width, separate_decoder=True, **text)
        self.encoders = Encoders(image_encoder, text_model, embed_dim, text_pooling)
        self.matcher = nn.Linear(text_model.width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.teacher = momentum_copy(self.encoders)
        self.queue = Queue(queue_size, embed_dim)
        self.momentum, self.alpha, self.alpha_ramp = momentum, alpha, alpha_ramp
        self.label_smoothing = label_smoothing
        self.ramp_steps = 1.0  # known when training begins

    def on_train_start(self) -> None:
        """Learn the length of the run. A new one forgets the queue: its pairs may be those of other data."""
        self.ramp_steps = max(1.0, self.alpha_ramp * self.trainer.estimated_stepping_batches)
        if self.global_step == 0:
            self.queue.clear()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log what the contrast learns beside the weights."""
        self.log_dict({"train/temperature": self.temperature.detach(), "train/alpha": self.current_alpha})

    @property
    def current_alpha(self) -> float:
        """The weight of the teacher's judgement at this step."""
        return self.alpha * min(1.0, self.global_step / self.ramp_steps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``itc``, ``itm`` and ``lm``. In training mode the teacher moves first, and the queue takes its keys last."""
        if len(batch["captions"]) < 2:
            raise ValueError("BLIP contrasts pairs with each other: batch_size must be at least 2 per process")
        with torch.no_grad():
            self.temperature.clamp_(*TEMPERATURES)
        ids, (tokens, mask) = batch["image_ids"], self._tokenize(batch["captions"])
        image, image_embedding = self.encoders.encode_images(batch["images"])
        text_embedding = self.encoders.encode_texts(tokens, mask)
        with torch.no_grad():
            if self.training:
                follow(self.teacher, self.encoders, self.momentum)
            _, image_keys = self.teacher.encode_images(batch["images"])
            text_keys = self.teacher.encode_texts(tokens, mask)
        itc, image_logits, text_logits = self._contrast(image_embedding, text_embedding, image_keys, text_keys, ids)
        if self.training:
            self.queue.add(image_keys, text_keys, ids)
        same_caption = (tokens[:, None] == tokens).all(2)  # (B, B); or the hardest negative were the caption itself
        positive = (ids[:, None] == ids) | same_caption
        itm = self._match_loss(image, tokens, mask, image_logits, text_logits, positive)
        return {"itc": itc, "itm": itm, "lm": self._write_loss(image, tokens, mask)}

    def _contrast(
        self, image: Tensor, text: Tensor, image_keys: Tensor, text_keys: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ITC of (B, E) embeddings with the teacher's of the same pairs and of those in the queue; and the logits
        (B, B) of the batch's images to its texts and of its texts to its images."""
        filled = self.queue.filled
        positive = ids[:, None] == torch.cat([ids, self.queue.ids[:filled]])  # (B, M)

        def direction(query: Tensor, teacher: Tensor, keys: Tensor, queued: Tensor) -> tuple[Tensor, Tensor]:
            keys = torch.cat([keys, queued[:filled]])  # (M, E), a copy: the queue changes before the backward pass
            logits = similarity(query, keys) / self.temperature
            targets = distilled_targets(similarity(teacher, keys) / self.temperature, positive, self.current_alpha)
            return soft_cross_entropy(logits, targets), logits[:, : len(ids)]

        image_loss, image_logits = direction(image, image_keys, text_keys, self.queue.text)
        text_loss, text_logits = direction(text, text_keys, image_keys, self.queue.image)
        return (image_loss + text_loss) / 2, image_logits, text_logits

    def _match_loss(
        self, image: Tensor, tokens: Tensor, mask: Tensor, image_logits: Tensor, text_logits: Tensor, positive: Tensor
    ) -> Tensor:
        """ITM over B pairs, B texts with a wrong image, B images with a wrong text."""
        wrong_image = hard_negatives(text_logits, positive)  # (B,) for each text
        wrong_text = hard_negatives(image_logits, positive)
        scores = self._match_scores(
            torch.cat([image, image[wrong_image], image]),  # (3B, L, D)
            torch.cat([tokens, tokens, tokens[wrong_text]]),
            torch.cat([mask, mask, mask[wrong_text]]),
        )
        matches = torch.arange(len(scores), device=scores.device) < len(image)
        return F.cross_entropy(scores.float(), matches.long())

    def _match_scores(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), (B, T) -> (B, 2) scores of *no match* and *match*, from the place of [ENC]."""
        hidden = self.encoders.text(_begin(tokens, self.tokenizer.enc), mask, image=image)
        return self.matcher(hidden[:, 0])

    def _write_loss(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """LM: each token from [DEC], those before it and the image."""
        text, begun = self.encoders.text, _begin(tokens, self.tokenizer.dec)
        logits = text.logits(text(begun[:, :-1], image=image, causal=True))
        return lm_loss(logits, tokens[:, 1:], mask[:, 1:], label_smoothing=self.label_smoothing)

    def _tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer(captions, max_length=self.encoders.text.max_length, device=self.device)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E) unit vectors."""
        return self.encoders.encode_images(images)[1]

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, E) unit vectors."""
        return self.encoders.encode_texts(*self._tokenize(captions))

    def image_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, D), for `match`."""
        return self.encoders.image(images)

    def match(self, image_tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, L, D) and B captions -> (B,) log-odds that they belong together, log p(match) - log p(no match)."""
        scores = self._match_scores(image_tokens, *self._tokenize(captions)).float()
        return scores[:, 1] - scores[:, 0]

    @torch.inference_mode()
    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """``embedding`` (B, E) of the picture, ``alignment`` (B,) the log-odds that picture and caption belong together
        (ITM), ``itc`` (B,) their cosine."""
        image, embedding = self.encoders.encode_images(batch["images"])
        tokens, mask = self._tokenize(batch["captions"])
        scores = self._match_scores(image, tokens, mask).float()
        itc = (embedding * self.encoders.encode_texts(tokens, mask)).sum(1)
        return {"embedding": embedding, "alignment": scores[:, 1] - scores[:, 0], "itc": itc}

    @torch.inference_mode()
    def generate(self, images: Tensor, **options: Any) -> list[str]:
        """A caption for each of (B, 3, H, W) images; ``options`` are those of `tldr.nn.generate.generate`."""
        prompt = torch.tensor([self.tokenizer.dec], device=images.device)
        end = self.tokenizer.end
        return self.tokenizer.decode(
            generate(self.encoders.text, self.image_tokens(images), prompt, end=end, **options)
        )


def _begin(tokens: Tensor, start: int) -> Tensor:
    """(B, T) tokens that begin with [CLS] -> the same beginning with ``start``."""
    return F.pad(tokens[:, 1:], (1, 0), value=start)
