"""BLIP (Li et al., ICML 2022, arXiv 2201.12086): pre-training (section 3.2), and what tasks ask of it (section 5).

    ITC  unimodal embeddings agree: contrast with the keys of a momentum copy, the teacher, for this batch and, from a
         queue, for earlier ones; a share alpha of the target is the teacher's judgement (ALBEF, arXiv 2107.07651)
    ITM  the image-grounded encoder tells B pairs from 2B hard negatives, drawn by the ITC logits or, in fine-tuning for
         retrieval (without LM), by the similarities of its own embeddings, without the teacher's keys
    LM   the image-grounded decoder writes the caption

One text transformer plays all three roles; its decoder differs in self-attention only. Where the published code assumes
millions of pictures, each seen once in a long while, ours may be few and have several captions: another caption of a
picture counts as its positive in ITC (as in BLIP's fine-tuning for retrieval) and is no negative in ITM. With distinct
pictures and captions the losses are the published ones.

Shapes: B pairs of this process, P those from which negatives are drawn (B, or those of all processes), M keys (B of the
batch and those in the queue), L image tokens, T text tokens, D width, E embedding width.
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
from tldr.nn.answers import rank
from tldr.nn.encoders import Encoders, scale_weights
from tldr.nn.freeze import freeze_unreached, trial_losses
from tldr.nn.generate import generate
from tldr.nn.losses import FLOOR, distilled_targets, lm_loss, similarity, soft_cross_entropy
from tldr.nn.momentum import Queue, follow, momentum_copy
from tldr.nn.negatives import Candidates, matching_batch
from tldr.nn.processes import gather
from tldr.nn.shard import whole
from tldr.nn.text import BERT_STD, TextTransformer
from tldr.nn.twin import see_two
from tldr.nn.vision import ImageEncoder

OBJECTIVES = ("itc", "itm", "lm")
TEMPERATURES = (0.001, 0.5)
ENCODING = r"encoders\.text\.(?!head|.*decoder_attention)"  # what reads texts, and not what writes them
WRITING = r"encoders\.text\.(?!.*\.attention)"  # and the other way round


class Blip(Model):
    """``image`` and ``text`` are the arguments of `ImageEncoder` and `TextTransformer`; ``tokenizer`` is a `Tokenizer`
    as JSON. ``alpha`` is reached in ``alpha_ramp`` of the run's steps (published: in 2 of 20 epochs).

    ``objectives``: all three in pre-training; itc and itm fine-tune for retrieval, where ITM's negatives are drawn as
    BLIP's code then draws them; lm for captions, which begin with ``prompt`` (published: "a picture of ").
    ``gather_negatives`` draws ITM's negatives from the batches of all processes, as BLIP does in fine-tuning on COCO.

    The defaults are the published ones, made for long runs from pre-trained encoders. A short run from scratch needs
    others (``conf/model/blip.yaml`` has figures): the mean of the text's tokens instead of [CLS]; a faster teacher; no
    queue, whose entries would soon be told from the batch by their age and not by what they show; an ``init_std`` of
    the text layers near 1 / sqrt(width), since BERT's 0.02 suits a width of 768 and passes almost nothing of a picture
    through a narrow layer; and negatives that are drawn uniformly at first, and by the full ITC logits only after
    ``negative_ramp`` of the run.
    """

    objective_weights: ClassVar[Mapping[str, str]] = {
        "itc": rf"encoders\.image|encoders\.text_projection|{ENCODING}",
        "itm": rf"encoders\.image\.|{ENCODING}|matcher",
        "lm": rf"encoders\.image\.|{WRITING}",
    }
    signal_weights: ClassVar[Mapping[str, str]] = {
        "embedding": r"encoders\.image",
        "alignment": objective_weights["itm"],
        "itc": objective_weights["itc"],
    }

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
        objectives: Sequence[str] = OBJECTIVES,
        gather_negatives: bool = False,
        negative_ramp: float = 0.0,
        init_std: float = BERT_STD,
        prompt: str = "",
    ) -> None:
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters()
        self.objectives, self.gather_negatives, self.prompt = tuple(objectives), gather_negatives, prompt
        if not self.objectives or not set(self.objectives) <= set(OBJECTIVES):
            raise ValueError(f"objectives={list(objectives)}; choose some of {', '.join(OBJECTIVES)}")
        self.tokenizer = Tokenizer(tokenizer)
        image_encoder = ImageEncoder(**image)
        width, self.image_size = image_encoder.width, image_encoder.image_size
        self.resize_mode = image_encoder.resize_mode
        text_model = TextTransformer(len(self.tokenizer), image_width=width, separate_decoder=True, **text)
        scale_weights(text_model, init_std / BERT_STD)
        self.encoders = Encoders(image_encoder, text_model, embed_dim, text_pooling)
        self.joint_width = text_model.width
        self.matcher = nn.Linear(text_model.width, 2)
        self.temperature = nn.Parameter(torch.tensor([temperature]))
        self.teacher = momentum_copy(self.encoders)
        self.queue = Queue(queue_size, embed_dim)
        self.momentum, self.alpha, self.alpha_ramp, self.negative_ramp = momentum, alpha, alpha_ramp, negative_ramp
        self.label_smoothing = label_smoothing
        self.steps = 1.0  # of the run, known when training begins
        if set(self.objectives) != set(OBJECTIVES):
            freeze_unreached(self, trial_losses)

    def on_train_start(self) -> None:
        """Learn the length of the run. A new one forgets the queue: its pairs may be those of other data."""
        self.steps = float(self.trainer.estimated_stepping_batches)
        if self.global_step == 0:
            self.queue.clear()
        batches = getattr(self.trainer.train_dataloader, "batch_sampler", None)  # it may know their size
        if self._contrasts and (size := getattr(batches, "batch_size", None)):
            self.queue.check(size * self.trainer.world_size)

    @torch.no_grad()
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Move the teacher, once for each step of the student, and clamp the temperature: here and not in the training
        step, where sharded weights are only gathered copies."""
        if self._contrasts and batch_idx % getattr(self._trainer, "accumulate_grad_batches", 1) == 0:
            follow(self.teacher, self.encoders, self.momentum)
            self.temperature.clamp_(*TEMPERATURES)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log what the contrast learns beside the weights."""
        if self._contrasts:
            self.log_dict({"train/temperature": whole(self.temperature), "train/alpha": self.current_alpha})

    @property
    def current_alpha(self) -> float:
        """The weight of the teacher's judgement at this step."""
        return self.alpha * self._risen(self.alpha_ramp)

    def _risen(self, share: float) -> float:
        """A ramp from 0 to 1 over the first ``share`` of the run."""
        return min(1.0, self.global_step / max(1.0, share * self.steps)) if share else 1.0

    @property
    def _contrasts(self) -> bool:
        return "itc" in self.objectives or "itm" in self.objectives

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Those of ``objectives``. In training mode the queue takes the teacher's keys last."""
        image = self.encoders.image(batch["images"])
        losses = self._understanding_losses(image, batch) if self._contrasts else {}
        if "lm" in self.objectives:
            losses["lm"] = self._write_loss(image, batch["captions"])
        return {name: losses[name] for name in OBJECTIVES if name in self.objectives}

    def _understanding_losses(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        """ITC and ITM of image tokens (B, L, D) and their captions."""
        if len(image) < 2:
            raise ValueError("BLIP contrasts pairs with each other: batch_size must be at least 2 per process")
        ids, (tokens, mask) = batch["image_ids"], self._tokenize(batch["captions"])
        image_embedding, text_embedding = self.encoders.embed(image), self.encoders.encode_texts(tokens, mask)
        with torch.no_grad():
            _, image_keys = self.teacher.encode_images(batch["images"])
            text_keys = self.teacher.encode_texts(tokens, mask)
        losses = {"itc": self._contrast(image_embedding, text_embedding, image_keys, text_keys, ids)}
        if self.training:
            self.queue.add(image_keys, text_keys, ids)
        if "itm" in self.objectives:
            embeddings = (image_embedding, text_embedding, image_keys, text_keys)
            losses["itm"] = self._match_loss(image, tokens, mask, ids, embeddings)
        return losses

    def _contrast(self, image: Tensor, text: Tensor, image_keys: Tensor, text_keys: Tensor, ids: Tensor) -> Tensor:
        """ITC of (B, E) embeddings with the teacher's of the same pairs and of those in the queue."""
        filled = self.queue.filled
        positive = ids[:, None] == torch.cat([ids, self.queue.ids[:filled]])  # (B, M)

        def direction(query: Tensor, teacher: Tensor, keys: Tensor, queued: Tensor) -> Tensor:
            keys = torch.cat([keys, queued[:filled]])  # (M, E), a copy: the queue changes before the backward pass
            targets = distilled_targets(similarity(teacher, keys) / self.temperature, positive, self.current_alpha)
            return soft_cross_entropy(similarity(query, keys) / self.temperature, targets)

        image_loss = direction(image, image_keys, text_keys, self.queue.text)
        return (image_loss + direction(text, text_keys, image_keys, self.queue.image)) / 2

    def _match_loss(
        self, image: Tensor, tokens: Tensor, mask: Tensor, ids: Tensor, embeddings: tuple[Tensor, ...]
    ) -> Tensor:
        """ITM over B pairs, B texts with a wrong image, B images with a wrong text. ``embeddings``, by which negatives
        are proposed: (B, E) of the images, of the texts, and the teacher's of both, used in pre-training."""
        image_embedding, text_embedding, image_keys, text_keys = (each.detach() for each in embeddings)
        pretraining = "lm" in self.objectives
        if not pretraining:
            image_keys, text_keys = image_embedding, text_embedding
        pool = Candidates(image, tokens, mask, ids)  # (P, ...)
        if self.gather_negatives:
            pool = pool.of_all(max_length=self.encoders.text.max_length, pad=self.tokenizer.pad)
            image_keys, text_keys = gather(image_keys), gather(text_keys)
        scale = self._risen(self.negative_ramp) / self.temperature.detach()
        text_logits = similarity(text_embedding, image_keys) * scale  # (B, P)
        image_logits = similarity(image_embedding, text_keys) * scale
        asked = matching_batch(pool, text_logits, image_logits, floor=FLOOR if pretraining else 0.0)
        scores = self._match_scores(*asked)  # (3B, 2)
        matches = torch.arange(len(scores), device=scores.device) < len(image)
        return F.cross_entropy(scores.float(), matches.long())

    def _encode(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), (B, T) -> (B, T, D) the image-grounded encoder's states."""
        return self.encoders.text(_begin(tokens, self.tokenizer.enc), mask, image=image)

    def _match_scores(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), (B, T) -> (B, 2) scores of *no match* and *match*, from the place of [ENC]."""
        return self.matcher(self._encode(image, tokens, mask)[:, 0])

    def _write_loss(self, image: Tensor, captions: Sequence[str]) -> Tensor:
        """LM: each token from [DEC], those before it and the image. The prompt is read, not learned."""
        begin = self.prompt.strip()
        tokens, mask = self._tokenize([f"{begin} {caption}" for caption in captions] if begin else captions)
        text, begun, real = self.encoders.text, _begin(tokens, self.tokenizer.dec), mask.clone()
        real[:, : len(self._prompt(begin))] = False
        logits = text.logits(text(begun[:, :-1], image=image, causal=True))
        return lm_loss(logits, tokens[:, 1:], real[:, 1:], label_smoothing=self.label_smoothing)

    def _tokenize(self, captions: Sequence[str], start: int | None = None) -> tuple[Tensor, Tensor]:
        return self.tokenizer(captions, max_length=self.encoders.text.max_length, start=start, device=self.device)

    def _prompt(self, prompt: str) -> Tensor:
        """(T,) tokens that a text begins with: [DEC] and those of ``prompt``."""
        return self._tokenize([prompt.strip()], self.tokenizer.dec)[0][0, :-1]

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
        itc = (embedding * self.embed_texts(batch["captions"])).sum(1)
        return {"embedding": embedding, "alignment": self.match(image, batch["captions"]), "itc": itc}

    def joint(self, images: Tensor, captions: Sequence[str], *, place: int = 0) -> Tensor:
        """(B, 3, H, W) and B captions -> (B, joint_width), the state of [ENC]. Pictures have no ``place``."""
        return self._encode(self.image_tokens(images), *self._tokenize(captions))[:, 0]

    def keep_student(self) -> None:
        """For a task's head, which contrasts nothing: forget the teacher and the queue, a half of the weights."""
        self.objectives = ("lm",)
        del self.teacher, self.queue

    def see_two(self) -> None:
        """From now on texts are encoded with two pictures, by `joint_two` (NLVR2)."""
        see_two(self.encoders.text)

    def joint_two(self, first: Tensor, second: Tensor, captions: Sequence[str]) -> Tensor:
        """Twice (B, 3, H, W) and B captions -> (B, joint_width), the state of [ENC]; after `see_two`."""
        image = torch.cat(self.image_tokens(torch.cat([first, second])).chunk(2), 1)  # (B, 2L, D)
        return self._encode(image, *self._tokenize(captions))[:, 0]

    @property
    def answer_decoder(self) -> TextTransformer:
        """What writes answers to questions, unless a copy of it, trained apart, is given."""
        return self.encoders.text

    def question(self, images: Tensor, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) and B questions -> their states (B, T, D), which have seen the picture, and mask (B, T)."""
        width, image_width = self.encoders.text.width, self.encoders.image.width
        if width != image_width:
            what = "the decoder reads questions where it read pictures"
            raise ValueError(f"{what}: text.width={width} must be the width of the image encoder, {image_width}")
        tokens, mask = self._tokenize(questions)
        return self._encode(self.image_tokens(images), tokens, mask), mask

    def answer_tokens(self, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """A answers -> tokens (A, T) as the decoder writes them, and their mask."""
        return self._tokenize(answers, self.tokenizer.dec)

    @torch.inference_mode()
    def rank_answers(
        self, images: Tensor, questions: Sequence[str], answers: list[str], *, top_k: int = 128,
        decoder: TextTransformer | None = None,
    ) -> list[str]:  # fmt: skip
        """For each of B questions the likeliest of the ``answers``, among the ``top_k`` with the likeliest first word;
        by ``decoder``, if given, instead of `answer_decoder`."""
        states, mask = self.question(images, questions)
        best = rank(decoder or self.answer_decoder, self.answer_tokens(answers), states, mask, top_k=top_k)
        return [answers[i] for i in best.tolist()]

    @torch.inference_mode()
    def generate(self, images: Tensor, *, prompt: str | None = None, **options: Any) -> list[str]:
        """A caption for each of (B, 3, H, W) images, after ``prompt`` (None: that of training), which is no part of it;
        ``options`` are those of `tldr.nn.generate.generate`."""
        begin, end = self._prompt(self.prompt if prompt is None else prompt), self.tokenizer.end
        return self.tokenizer.decode(generate(self.encoders.text, self.image_tokens(images), begin, end=end, **options))


def _begin(tokens: Tensor, start: int) -> Tensor:
    """(B, T) tokens that begin with [CLS] -> the same beginning with ``start``."""
    return F.pad(tokens[:, 1:], (1, 0), value=start)
