"""Visual question answering (VQAv2, Goyal et al. 2017, arXiv 1612.00837), in the two ways of its models.

    classify  the answers most frequent in training are classes; their soft targets are what each would score by the
              official rule, and each is learned by itself with binary cross-entropy: ViLT's way (arXiv 2102.03334,
              section 4.2), for any backbone that has joint features
    rank      a decoder reads the states of the question, which has seen the picture, and writes the answer; each human
              answer is weighted by the share of people who gave it. To answer, the likeliest of the frequent answers is
              chosen: BLIP's way (arXiv 2201.12086, section 5.3)

Shapes: B questions, A answers of the vocabulary, J width of the joint feature.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.check import check_number
from tldr.data.loading import Batch
from tldr.metric.answer import accuracy, normalise, unanimous
from tldr.model.base import Joint, Model, describe, open_backbone
from tldr.nn.answers import answer_nll
from tldr.nn.freeze import freeze_unreached
from tldr.nn.text import TextTransformer

MODES = ("classify", "rank")


@runtime_checkable
class Answerer(Protocol):
    """What it must offer for ``mode=rank``: that of `tldr.model.blip.Blip`."""

    label_smoothing: float

    @property
    def answer_decoder(self) -> TextTransformer:
        """What writes answers."""
        ...

    def question(self, images: Tensor, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) and B questions -> states (B, T, D) that have seen the picture, and their mask (B, T)."""
        ...

    def answer_tokens(self, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """A answers -> (A, T) tokens and their mask."""
        ...

    def rank_answers(
        self, images: Tensor, questions: Sequence[str], answers: list[str], *, top_k: int = 128,
        decoder: TextTransformer | None = None,
    ) -> list[str]:  # fmt: skip
        """The likeliest answer to each question."""
        ...


class Vqa(Model):
    """``backbone`` is one of our checkpoints (a file or its folder; from a head's, the backbone that it has tuned is
    taken), or a description by `describe`, with random weights; ``image`` overrides arguments of its image encoder
    (image_size, drop_path). ``answers`` are what it can say; None: the ``num_answers`` most frequent in training, which
    `prepare_table` finds. ``top_k`` answers are ranked. The decoder that ranks is a copy of the backbone's, trained
    apart, as BLIP's, unless ``shared_decoder``. ``optimizer.head_lr_scale`` is for the classifier (ViLT: 10)."""

    columns = ("answers",)
    learns_tokenizer = False
    head_names = ("head",)

    def __init__(
        self,
        *,
        backbone: str | Path | Mapping[str, Any],
        optimizer: Mapping[str, Any],
        image: Mapping[str, Any] | None = None,
        mode: str = "classify",
        answers: Sequence[str] | None = None,
        num_answers: int = 3129,
        top_k: int = 128,
        shared_decoder: bool = False,
    ) -> None:
        super().__init__(optimizer=optimizer)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; choose from {', '.join(MODES)}")
        for key, value in {"num_answers": num_answers, "top_k": top_k}.items():
            check_number(f"model.{key}", value, "a whole number of answers, from 1", low=1, whole=True)
        model = open_backbone(backbone, image or {})
        name = type(model).__name__
        if mode == "classify" and not isinstance(model, Joint):
            raise ValueError(f"backbone: {name} has no joint feature of picture and text")
        if mode == "rank" and not isinstance(model, Answerer):
            raise ValueError(f"mode=rank: {name} writes no answers; take a blip, or mode=classify")
        self.save_hyperparameters(
            {
                "backbone": describe(model), "optimizer": dict(optimizer), "mode": mode, "num_answers": num_answers,
                "answers": None if answers is None else list(answers), "top_k": top_k, "shared_decoder": shared_decoder,
            }
        )  # fmt: skip
        self.indivisible = "model.mode=rank" if mode == "rank" else ""  # `answer_nll` runs once for each length
        self.backbone, self.mode, self.num_answers, self.top_k = model, mode, num_answers, top_k
        self.image_size, self.resize_mode, self.compiled = model.image_size, model.resize_mode, model.compiled
        self.answers: list[str] = []
        self.decoder: TextTransformer | None = None
        self.head: nn.Module | None = None
        if mode == "rank" and not shared_decoder:
            assert isinstance(model, Answerer)
            self.decoder = copy.deepcopy(model.answer_decoder)
        if answers is not None:
            self._learn_to_say(answers)
        self.train()

    def prepare_table(self, table: pa.Table) -> None:
        """Learn what can be answered from the training pairs' ``answers`` (a list for each question)."""
        if self.answers:
            return
        count: Counter[str] = Counter()
        for said in pc.value_counts(pc.list_flatten(table["answers"])).to_pylist():
            count[_plain(said["values"])] += said["counts"]
        if not count:
            raise ValueError("the training pairs have no answers (column answers)")
        ordered = sorted(count, key=lambda answer: (-count[answer], answer))  # equal counts in alphabetical order
        self._learn_to_say(ordered[: self.num_answers])

    def _learn_to_say(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.hparams["answers"] = self.answers  # in the checkpoint, so that it loads by itself
        self.places: dict[str, list[int]] = defaultdict(list)  # of each form in which answers are compared
        for place, answer in enumerate(self.answers):
            self.places[normalise(answer)].append(place)
        if self.mode == "classify":
            assert isinstance(self.backbone, Joint)
            width = self.backbone.joint_width
            self.head = nn.Sequential(
                nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, len(answers))
            )
        freeze_unreached(self, _trial)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``vqa``: binary cross-entropy summed over the vocabulary, or the weighted LM loss of the answers."""
        self._check()
        given = batch["columns"]["answers"]
        if self.head is not None:
            targets = self._targets(given).to(self.device)
            scores = self._scores(batch)
            return {"vqa": F.binary_cross_entropy_with_logits(scores, targets) * targets.shape[1]}
        model = self.backbone
        assert isinstance(model, Answerer)
        counts = [Counter(_plain(answer) for answer in answers) for answers in given]
        rows = [row for row, count in enumerate(counts) for _ in count]
        weights = [number / count.total() for count in counts for number in count.values()]
        texts = [answer for count in counts for answer in count]
        states, mask = model.question(batch["images"], batch["captions"])
        decoder, tokens = self.decoder or model.answer_decoder, model.answer_tokens(texts)
        nll = answer_nll(decoder, tokens, states[rows], mask[rows], label_smoothing=model.label_smoothing)
        return {"vqa": (nll * torch.tensor(weights, device=nll.device)).sum() / len(given)}

    @torch.inference_mode()
    def answer(self, batch: Batch) -> list[str]:
        """What it answers to each of the B questions (``captions``)."""
        self._check()
        if self.head is not None:
            return [self.answers[place] for place in self._scores(batch).argmax(1).tolist()]
        assert isinstance(self.backbone, Answerer)
        return self.backbone.rank_answers(
            batch["images"], batch["captions"], self.answers, top_k=self.top_k, decoder=self.decoder
        )

    def _scores(self, batch: Batch) -> Tensor:
        """(B, A) log-odds of each answer."""
        assert isinstance(self.backbone, Joint)
        assert self.head is not None
        return self.head(self.backbone.joint(batch["images"], batch["captions"])).float()

    def _targets(self, given: Sequence[Sequence[str]]) -> Tensor:
        """(B, A) the score of each answer of the vocabulary against the people's answers. If all ten agree, theirs is
        compared as it stands, but in lower case, as the vocabulary is."""
        targets = torch.zeros(len(given), len(self.answers))
        for row, answers in enumerate(given):
            people = [_plain(answer) for answer in answers] if unanimous(answers) else answers
            for form in {normalise(answer) for answer in people}:
                for place in self.places.get(form, ()):  # no other can score
                    targets[row, place] = accuracy(self.answers[place], people)
        return targets

    def _check(self) -> None:
        if not self.answers:
            raise ValueError("no answers to choose from: give answers=..., or train (which learns them from the pairs)")


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split())


def _trial(model: Vqa) -> Tensor:
    """The loss of black pictures: which parameters it reaches is all that matters."""
    images = torch.zeros(2, 3, model.image_size, model.image_size, dtype=torch.uint8)
    batch: Any = {"images": images, "captions": ["a", "b"], "columns": {"answers": [model.answers[:1]] * 2}}
    return model.losses(batch)["vqa"]
