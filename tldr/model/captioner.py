"""The captioner, and with a codebook the VQ-VLM of TL;DR (Wang et al., ICCV 2023, section 3.1, arXiv 2305.20087).

Image tokens (quantised or not) are read by a text decoder through cross-attention, which learns to write the caption.
For a share of the rows the picture is replaced by a learned *null image*: the same decoder then also knows how likely
a caption is by itself, and

    alignment(x, y) = log p(y | x) - log p(y | null)

the pointwise mutual information of picture and caption in nats, tells captions that fit from captions that are merely
well-formed.

Where captions are noisy, ``noise_rate`` makes the decoder one component of a mixture: with probability 1 - e a caption
comes from its picture, with probability e from anywhere, as the null image models it. The posterior that it belongs,

    trust(x, y) = sigmoid(alignment(x, y) + log (1 - e) / e)

is its weight in the loss (the mixture's gradient, up to a factor that keeps the step's size), and e follows the mean of
1 - trust, as in EM. Before the decoder has begun to use the picture, no caption is trusted less than others: all
alignments are then about 0.

Shapes: B pairs, L image tokens, T text tokens, D width, K codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.data.keywords import keywords
from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import Model
from tldr.nn.encoders import scale_weights
from tldr.nn.generate import generate
from tldr.nn.losses import token_nll
from tldr.nn.processes import gather
from tldr.nn.quantizer import Quantizer
from tldr.nn.text import BERT_STD, TextTransformer, by_length
from tldr.nn.vision import ImageEncoder

LOG_EVERY = 50
NOISE_RATE_STEP = 0.02  # of its moving average: the last 50 batches


class Captioner(Model):
    """``image``, ``text`` and ``quantizer`` are the arguments of `ImageEncoder`, `TextTransformer` and `Quantizer`
    (None: no codebook); ``tokenizer`` is a `Tokenizer` as JSON; ``null_share`` of the rows learn without their
    picture. Every caption follows ``prompt`` (BLIP, fine-tuned on COCO: "a picture of "), which is read, not learned.
    ``noise_rate`` is the initial share of wrong captions (None: all are believed); ``init_std`` is the initial standard
    deviation of the decoder's weights (BERT's 0.02 suits a width of 768; a narrow one needs about 1 / sqrt(width)).
    """

    signal_weights: ClassVar[Mapping[str, str]] = {
        "codes": "image_encoder|quantizer",
        "embedding": "image_encoder",
        "alignment": "",
        "tokens": "$",
    }
    objective_weights: ClassVar[Mapping[str, str]] = {"lm": "image_encoder|decoder"}

    def __init__(
        self,
        *,
        tokenizer: str,
        image: Mapping[str, Any],
        text: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        quantizer: Mapping[str, Any] | None = None,
        null_share: float = 0.15,
        label_smoothing: float = 0.0,
        prompt: str = "",
        noise_rate: float | None = None,
        init_std: float = BERT_STD,
    ) -> None:
        super().__init__(optimizer=optimizer)
        if noise_rate is not None and (not 0 < noise_rate < 1 or not 0 < null_share < 1):
            raise ValueError(
                f"noise_rate={noise_rate} must be null, or the initial share of wrong captions, inside (0, 1), which "
                f"needs null_share inside (0, 1) too (it is {null_share})"
            )
        self.save_hyperparameters()
        self.tokenizer = Tokenizer(tokenizer)
        self.image_encoder = ImageEncoder(**image)
        width, self.resize_mode = self.image_encoder.width, self.image_encoder.resize_mode
        self.image_size = self.image_encoder.image_size
        self.decoder = TextTransformer(len(self.tokenizer), image_width=width, **text)
        scale_weights(self.decoder, init_std / BERT_STD)
        self.quantizer = Quantizer(width, **quantizer) if quantizer is not None else None
        self.joint_width = 2 * self.decoder.width
        self.keywords: list[str] = []
        self.null = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.null_share, self.label_smoothing, self.prompt = null_share, label_smoothing, prompt
        self.noise: Tensor | None  # the share of wrong captions, as found so far; None: all are believed
        self.register_buffer("noise", None if noise_rate is None else torch.tensor(float(noise_rate)))
        self._looked = -1  # the step at which `_log_grounding` last ran
        self.prompt_length = self._tokenize([""])[0].shape[1] - 1  # tokens before the caption's first

    @classmethod
    def signals_of(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Codes where there is a codebook."""
        found = super().signals_of(arguments)
        return found if arguments.get("quantizer") is not None else tuple(name for name in found if name != "codes")

    def unlearned(self, names: Iterable[str]) -> list[str]:
        """Also a codebook that has not joined yet: until then all codes are 0."""
        names = set(names)
        waits = "codes" in names and self.quantizer is not None and not self.quantizer.active
        return [*super().unlearned(names), *["the codebook"] * waits]

    @property
    def wrong_share(self) -> float | None:
        """It starts at ``noise_rate``, and training updates it as a moving average over batches."""
        return None if self.noise is None else float(self.noise)

    def prepare(self, captions: Sequence[str]) -> None:
        """Find the keywords that the codebook begins from."""
        if self.quantizer is not None and self.quantizer.init == "keywords":
            self.keywords = keywords(captions, self.quantizer.codebook_size)

    def on_train_start(self) -> None:
        """Refuse a run that ends before the codebook begins: every code would be 0."""
        steps = int(self.trainer.estimated_stepping_batches)
        if self.quantizer is not None and not self.quantizer.active and steps <= self.quantizer.after:
            raise ValueError(
                f"the codebook joins after {self.quantizer.after} steps, but training ends after {steps}: "
                "lower model.quantizer.after, or train longer: training.max_steps of select.py, max_steps of train.py"
            )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(B, 3, H, W) -> the tokens (B, L, D) that the decoder reads, their codes (B, L) or None, commitment loss."""
        tokens = self.image_encoder.patches(self.image_encoder(images))
        if self.quantizer is None:
            return tokens, None, tokens.new_zeros(())
        if self.training and self.quantizer.observe(tokens, self.global_step):
            self.quantizer.initialise(self._keyword_embeddings() if self.quantizer.init == "keywords" else None)
        return self.quantizer(tokens)

    def _tokenize(self, captions: Sequence[str], prompt: str | None = None) -> tuple[Tensor, Tensor]:
        """(B, T) tokens of [DEC], ``prompt`` (None: that of training), and captions, and their mask."""
        begin = (self.prompt if prompt is None else prompt).strip()
        texts = [f"{begin} {caption}".strip() for caption in captions] if begin else captions
        return self.tokenizer(texts, max_length=self.decoder.max_length, start=self.tokenizer.dec, device=self.device)

    def _words(self, mask: Tensor) -> Tensor:
        """The mask (B, T - 1) of what is to be written after the first token: the caption and its end, no prompt."""
        words = mask.clone()
        words[:, : self.prompt_length] = False
        return words[:, 1:]

    def _nll(self, tokens: Tensor, mask: Tensor, image: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """(B,) negative log-likelihood of each text (B, T) given the image tokens (B, L, D), summed over its words."""
        words = self._words(mask)

        def nll(rows: Tensor, longest: int) -> Tensor:
            text, real = tokens[rows, :longest], words[rows, : longest - 1]
            logits = self.decoder.logits(self.decoder(text[:, :-1], image=image[rows], causal=True))
            return token_nll(logits, text[:, 1:], real, label_smoothing=label_smoothing)

        return by_length(mask.sum(1), nll)

    def _keyword_embeddings(self) -> Tensor:
        """(M, D) the mean word embedding of every keyword, projected to the image tokens' width where that differs."""
        limit = 8  # tokens of a keyword
        tokens, mask = self.tokenizer(self.keywords, max_length=limit, device=self.device)
        mask = mask & (tokens != self.tokenizer.cls) & (tokens != self.tokenizer.sep)
        words = self.decoder.words(tokens) * mask[..., None]
        words = words.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        if words.shape[1] == self.null.shape[-1]:
            return words
        generator = torch.Generator().manual_seed(0)
        projection = torch.randn(words.shape[1], self.null.shape[-1], generator=generator)
        return words @ projection.to(words) / words.shape[1] ** 0.5

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """LM loss (``null_share`` of the rows without picture) and the codebook's commitment loss."""
        image, codes, commitment = self.encode(batch["images"])
        tokens, mask = self._tokenize(batch["captions"])
        blind = torch.rand(len(image), 1, 1, device=image.device) < self.null_share
        seen = torch.where(blind, self.null.to(image.dtype), image)
        nll, words = self._nll(tokens, mask, seen, label_smoothing=self.label_smoothing), self._words(mask).sum(1)
        trust = torch.ones_like(nll)
        if self.noise is not None:
            trust = self._trust(nll.detach(), tokens, mask, blind[:, 0, 0], self.noise)
        told = (trust * words).sum().clamp_min(1e-6)  # of a batch of one, trust may vanish
        losses = {"lm": (trust * nll).sum() / told}
        if self.quantizer is not None:
            losses["commitment"] = commitment
        if self.global_step % LOG_EVERY == 0 and self.global_step != self._looked:  # gradients may be accumulated
            self._looked = self.global_step
            self._log_grounding(image, codes, tokens, mask)
        return losses

    @torch.no_grad()
    def _trust(self, nll: Tensor, tokens: Tensor, mask: Tensor, blind: Tensor, noise: Tensor) -> Tensor:
        """(B,) the posterior that a caption belongs to its picture, from ``nll`` (B,), its loss given what was seen; 1
        for the ``blind`` rows (B,), which saw no picture. ``noise`` () is updated."""
        null = self.null.expand(len(nll), 1, -1)  # one null token gives the same result as many equal ones
        prior = self._nll(tokens, mask, null, label_smoothing=self.label_smoothing)
        trust = torch.sigmoid(prior - nll + torch.logit(1 - noise))
        doubted = torch.stack([(1 - trust)[~blind].sum(), (~blind).sum()])
        doubt, count = gather(doubted[None]).sum(0)  # of all processes, so that they agree
        if count:
            noise.lerp_(doubt / count, NOISE_RATE_STEP).clamp_(0.01, 0.99)
        return torch.where(blind, torch.ones_like(trust), trust)

    @torch.no_grad()
    def _log_grounding(self, image: Tensor, codes: Tensor | None, tokens: Tensor, mask: Tensor) -> None:
        """Does the decoder look? The LM loss with the right pictures, with the neighbours', and without any. How many
        captions does it doubt, and how much of the codebook does it use?"""
        views = {"lm_image": image, "lm_shuffled": image.roll(1, 0), "lm_null": self.null.expand_as(image)}
        count = self._words(mask).sum()
        found = {f"train/{name}": self._nll(tokens, mask, view).sum() / count for name, view in views.items()}
        if self.noise is not None:
            found["train/noise_rate"] = self.noise
        if self.quantizer is not None and codes is not None and self.quantizer.active:
            found |= {f"codebook/{name}": value for name, value in self.quantizer.usage(codes).items()}
        self.log_now(found)

    @torch.inference_mode()
    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """What this model says of each pair: ``codes`` (B, L) where there is a codebook, ``embedding`` (B, D) the mean
        token, ``alignment`` (B,) in nats, and ``tokens`` (B,) the caption's length."""
        image, codes, _ = self.encode(batch["images"])
        tokens, mask = self._tokenize(batch["captions"])
        gain = self._nll(tokens, mask, self.null.expand_as(image)) - self._nll(tokens, mask, image)
        found = {"embedding": image.mean(1), "alignment": gain, "tokens": self._words(mask).sum(1)}
        return found if codes is None else {"codes": codes, **found}

    def constants(self) -> dict[str, Tensor]:
        """The codebook (K, D), where there is one."""
        return {} if self.quantizer is None else {"codebook": self.quantizer.codebook}

    def joint(self, images: Tensor, captions: Sequence[str], *, place: int = 0) -> Tensor:
        """(B, 3, H, W) and B captions -> (B, joint_width): the decoder's state at the end of the text, and a vector of
        how well the text fits. A word's score is the dot product of the state before it and its embedding. What the
        picture adds to that state (over no picture), multiplied elementwise by the embedding and summed over the words,
        is a vector whose sum is close to the pointwise mutual information that `signals` calls alignment. ``place`` is
        ignored."""
        tokens, mask = self._tokenize(captions, prompt="")
        image = self.encode(images)[0]
        seen = self.decoder(tokens, image=image, causal=True)  # (B, T, D)
        blind = self.decoder(tokens, image=self.null.to(image.dtype).expand_as(image), causal=True)
        gain = self.decoder.head(seen[:, :-1]) - self.decoder.head(blind[:, :-1])
        real = mask[:, 1:, None].to(gain.dtype)
        words = F.layer_norm(self.decoder.words(tokens[:, 1:]), gain.shape[2:])  # entries of about 1, for heads
        fit = (gain * words * real).sum(1) / real.sum(1).sqrt()
        return torch.cat([seen[torch.arange(len(seen), device=seen.device), mask.sum(1) - 1], fit], 1)

    @torch.inference_mode()
    def generate(self, images: Tensor, *, prompt: str | None = None, **options: Any) -> list[str]:
        """A caption for each of (B, 3, H, W) images, after ``prompt`` (None: that of training), which is no part of it;
        ``options`` are those of `tldr.nn.generate.generate`."""
        image, _, _ = self.encode(images)
        begin = self._tokenize([""], prompt)[0][0, :-1]
        return self.tokenizer.decode(generate(self.decoder, image, begin, end=self.tokenizer.end, **options))
