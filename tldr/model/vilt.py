"""ViLT (Kim et al., ICML 2021, arXiv 2102.03334): a vision-and-language transformer without convolutions or regions.

    MLM  guess 15 % of the caption's words, masked whole, from the others and the picture
    ITM  tell whether the picture is the caption's own or, with probability 0.5, another one of the batch
    WPA  the words of a right pair lie near its patches, those of a swapped one far: optimal transport (a part of ITM in
         the paper, which does not mention swapped pairs; its code uses them, and without them all states collapse)

Fine-tuned for retrieval, it instead learns only to find a picture's caption among captions of others (section 4.3; 15
of them). The score is the matching head's log-odds; the published code starts from the head's row for a match.

The published code draws the other picture, and the others' captions, from all the data. Ours come from the batch, and
never belong together by chance: pairs of the same picture or of the same caption are not swapped.

Shapes: B pairs, R captions of others, L image tokens, T text tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import Model
from tldr.nn.freeze import freeze_unreached, trial_losses
from tldr.nn.joint import JointTransformer
from tldr.nn.masking import choose_words, corrupt, draw_others, swap_pictures
from tldr.nn.text import TextTransformer
from tldr.nn.transport import transport_distance
from tldr.nn.vision import ImageEncoder


class Vilt(Model):
    """``image`` and ``text`` are the arguments of `ImageEncoder`, whose blocks read words and patches, and of
    `TextTransformer`, with ``depth`` 0 and, where ``width`` is None, the image's; ``tokenizer`` is a `Tokenizer` as
    JSON.

    ``masked`` is the share of the words that MLM guesses, ``swapped`` of the pairs that ITM gives another picture;
    ``wpa`` weighs the word-patch alignment (0: none). ``ranked`` above 0 is fine-tuning for retrieval, instead of all
    other losses: the number of other captions that each picture's own is ranked against. The defaults are the published
    ones, made for long runs from ViT's weights; ``conf/model/vilt.yaml`` has those of a short run from scratch.
    """

    compiled = (JointTransformer,)
    objective_weights: ClassVar[Mapping[str, str]] = {"itm": r"network\.(?!text\.head)|matcher"}
    vocabulary: Tensor

    def __init__(
        self,
        *,
        tokenizer: str,
        image: Mapping[str, Any],
        text: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        masked: float = 0.15,
        whole_words: bool = True,
        swapped: float = 0.5,
        wpa: float = 0.1,
        ranked: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters()
        if not 0 < swapped < 1:
            raise ValueError(f"swapped={swapped}, but ITM learns from right and from wrong pairs: between 0 and 1")
        if ranked < 0:
            raise ValueError(f"ranked={ranked}: wrong captions to rank against, 15 as published, or 0 for pre-training")
        self.tokenizer = Tokenizer(tokenizer)
        encoder = ImageEncoder(**image)
        self.image_size, self.resize_mode, self.joint_width = encoder.image_size, encoder.resize_mode, encoder.width
        shape = {"width": text.get("width") or encoder.width, "heads": text.get("heads") or 1}  # no layer has heads
        self.network = JointTransformer(encoder, TextTransformer(len(self.tokenizer), **{**text, **shape}))
        if not image.get("pretrained"):
            self.network.widen_start()
        self.matcher = nn.Linear(self.joint_width, 2)
        self.masked, self.whole_words, self.swapped, self.wpa = masked, whole_words, swapped, wpa
        self.ranked = ranked
        special = {self.tokenizer.pad, self.tokenizer.unk, self.tokenizer.cls, self.tokenizer.sep}
        special |= {self.tokenizer.mask, self.tokenizer.enc, self.tokenizer.dec}
        vocabulary = [token for token in range(len(self.tokenizer)) if token not in special]
        self.register_buffer("vocabulary", torch.tensor(vocabulary), persistent=False)
        if ranked:
            freeze_unreached(self, trial_losses)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``mlm``, ``itm`` and, if it weighs anything, ``wpa``, weighted; or ``ranking`` alone."""
        if len(batch["captions"]) < 2:
            raise ValueError("ViLT learns from wrong pairs of a batch, too: batch_size must be at least 2 per process")
        ids, (tokens, mask) = batch["image_ids"], self._tokenize(batch["captions"])
        patches = self.network.patches(batch["images"])
        positive = (ids[:, None] == ids) | (tokens[:, None] == tokens).all(2)  # (B, B)
        if self.ranked:
            return {"ranking": self._rank_loss(patches, tokens, mask, positive)}
        numbers = self.tokenizer.words(batch["captions"], max_length=self.network.text.max_length).to(tokens.device)
        losses = {"mlm": self._guess_loss(patches, tokens, mask, numbers)}
        return losses | self._match_losses(patches, tokens, mask, numbers, positive)

    def _match_losses(
        self, patches: Tensor, tokens: Tensor, mask: Tensor, numbers: Tensor, positive: Tensor
    ) -> dict[str, Tensor]:
        """ITM and WPA, over pairs of which some get another picture, but never one that is ``positive`` (B, B)."""
        source, matched = swap_pictures(positive, self.swapped)
        words, seen = self.network(patches[source], tokens, mask)
        losses = {"itm": F.cross_entropy(self._judge(words), matched.long())}
        if self.wpa:
            losses["wpa"] = self.wpa * self._align_loss(words, seen, numbers >= 0, matched)
        return losses

    def _rank_loss(self, patches: Tensor, tokens: Tensor, mask: Tensor, positive: Tensor) -> Tensor:
        """The mean negative log-likelihood of a picture's own caption against R others, drawn from those that are not
        ``positive`` (B, B), or against as many as there are; the mean is over the pictures that have any."""
        others, there = draw_others(positive, self.ranked)  # (B, R)
        if not there.any():
            raise ValueError(
                f"model.ranked={self.ranked}: no picture of this batch of {len(tokens)} has a wrong caption to be "
                "ranked against: all share a picture or a caption; raise batch_size, or use data with more pictures"
            )
        own = torch.arange(len(tokens), device=tokens.device)[:, None]
        shown = torch.cat([own, others], 1).flatten()
        words, _ = self.network(patches.repeat_interleave(others.shape[1] + 1, 0), tokens[shown], mask[shown])
        odds = self._odds(words).view(len(tokens), -1)  # (B, 1 + R)
        odds = odds.masked_fill(~F.pad(there, (1, 0), value=True), -torch.inf)
        nll = F.cross_entropy(odds, torch.zeros_like(own[:, 0]), reduction="sum")  # 0 for a picture without others
        return nll / there.any(1).sum()

    def _guess_loss(self, patches: Tensor, tokens: Tensor, mask: Tensor, numbers: Tensor) -> Tensor:
        """MLM: the mean negative log-likelihood of the words that were masked; ``numbers`` (B, T) says whose pieces."""
        chosen = choose_words(numbers, self.masked, whole=self.whole_words)  # (B, T)
        read = corrupt(tokens, chosen, mask_token=self.tokenizer.mask, vocabulary=self.vocabulary)
        words, _ = self.network(patches, read, mask)
        logits = self.network.text.logits(words[chosen]).float()  # (M, V) of the M masked tokens
        return F.cross_entropy(logits, tokens[chosen], reduction="sum") / chosen.sum().clamp_min(1)

    def _align_loss(self, words: Tensor, seen: Tensor, word: Tensor, matched: Tensor) -> Tensor:
        """WPA: the mean over all pairs of the distance from words to patches, negative where the picture is another;
        ``word`` (B, T) bool leaves out [CLS], [SEP] and padding."""
        patch = torch.ones_like(seen[..., 0], dtype=torch.bool)
        patch[:, : self.network.image.num_prefix_tokens] = False  # the class token is no place in the picture
        distance = transport_distance(words, seen, word, patch)  # (B,)
        return torch.where(matched, distance, -distance).mean()

    def _judge(self, words: Tensor) -> Tensor:
        """(B, T, D) -> (B, 2) scores of *no match* and *match*."""
        return self.matcher(self.network.pool(words)).float()

    def _odds(self, words: Tensor) -> Tensor:
        """(B, T, D) -> (B,) log p(match) - log p(no match)."""
        scores = self._judge(words)
        return scores[:, 1] - scores[:, 0]

    def _tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer(captions, max_length=self.network.text.max_length, device=self.device)

    def image_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, D) for `match`: patches with their positions, which have seen nothing yet."""
        return self.network.patches(images)

    def match(self, image_tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, L, D) and B captions -> (B,) log-odds that they belong together, log p(match) - log p(no match)."""
        words, _ = self.network(image_tokens, *self._tokenize(captions))
        return self._odds(words)

    def joint(self, images: Tensor, captions: Sequence[str], *, place: int = 0) -> Tensor:
        """(B, 3, H, W) and B captions -> (B, joint_width) pooled feature of both; ``place`` 1 for the second picture of
        two."""
        words, _ = self.network(self.network.patches(images), *self._tokenize(captions), place=place)
        return self.network.pool(words)

    @torch.inference_mode()
    def signals(self, batch: Batch) -> dict[str, Tensor]:
        """``embedding`` (B, D), unit: the mean of the patches' states where the picture is read without words (so that
        pairs of one picture have one embedding); ``alignment`` (B,) the log-odds that picture and caption belong
        together (ITM)."""
        patches = self.network.patches(batch["images"])
        _, seen = self.network(patches, *self._tokenize([""] * len(patches)))
        embedding = F.normalize(self.network.image.patches(seen).mean(1).float(), dim=-1)
        return {"embedding": embedding, "alignment": self.match(patches, batch["captions"])}
