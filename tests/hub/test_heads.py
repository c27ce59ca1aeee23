"""Heads and their backbones, written and opened as the classes of transformers: the same numbers."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BlipForQuestionAnswering,
    ViltForImagesAndTextClassification,
    ViltForQuestionAnswering,
)

from tests.hub.conftest import TEXTS, close, same_weights, spread, vilt_inputs
from tldr.data.tokenizer import Tokenizer
from tldr.hub.checkpoint import check_export, export, initialise, read
from tldr.model.base import describe
from tldr.model.blip import Blip
from tldr.model.clip import Clip
from tldr.model.nlvr2 import Nlvr2
from tldr.model.vilt import Vilt
from tldr.model.vqa import Vqa
from tldr.nn.answers import answer_nll

ANSWERS = ["red", "a blue heart", "on the left", "hearts"]
TOKENIZER = Tokenizer.learn(TEXTS * 2, vocab_size=40).json
IMAGE = {"backbone": "vit", "image_size": 24, "patch_size": 8, "width": 16, "depth": 2, "heads": 4}
TEXT = {"width": 16, "depth": 2, "heads": 2, "max_length": 24}


def backbone(kind: type) -> dict[str, Any]:
    common: dict[str, Any] = {"tokenizer": TOKENIZER, "image": IMAGE, "text": TEXT, "optimizer": {}}
    if kind is Vilt:
        common |= {"image": {**IMAGE, "norm_eps": 1e-5}, "text": {**TEXT, "depth": 0, "norm_eps": 1e-5}}
    if kind is Blip:
        common |= {"embed_dim": 8, "queue_size": 0}
    return describe(kind(**common))


def head(kind: type, on: type, **options: Any) -> Any:
    torch.manual_seed(0)
    return spread(kind(backbone=backbone(on), optimizer={}, **options))


def batch_of(images, **columns: Any) -> Any:
    return {"images": images, "images_2": images.flip(0), "captions": TEXTS, "columns": columns}


@torch.no_grad()
def test_vilt_answers_there_what_it_answers_here(tmp_path, images):
    ours = head(Vqa, Vilt, answers=ANSWERS)
    theirs: Any = ViltForQuestionAnswering.from_pretrained(export(ours, tmp_path / "out")).eval()
    given, said = vilt_inputs(tmp_path / "out", images), [["red", "red", "blue"], ["on the left"] * 3, ["hearts"]]
    found, batch = theirs(**given, labels=ours._targets(said)), batch_of(images, answers=said)
    close(ours._scores(batch), found.logits)
    close(ours.losses(batch)["vqa"], found.loss)
    assert [theirs.config.id2label[number] for number in found.logits.argmax(1).tolist()] == ours.answer(batch)
    assert found.logits.std() > 0.1

    weights = read(tmp_path / "out", "Vilt")  # fine-tuning can begin from it
    again = Vilt(tokenizer=str(weights.tokenizer), optimizer={}, **weights.arguments)
    rest = initialise(again, weights)
    assert {name.removeprefix("network.text.").partition(".")[0] for name in rest} == {"head", "head_bias", "matcher"}
    same_weights(again.network.image, ours.backbone.network.image)


@pytest.mark.parametrize("pictures", [1, 2])
@torch.no_grad()
def test_vilt_judges_there_as_it_judges_here(tmp_path, images, pictures):
    ours = head(Nlvr2, Vilt, pictures=pictures)
    theirs = ViltForImagesAndTextClassification.from_pretrained(export(ours, tmp_path / "out")).eval()
    batch = batch_of(images, label=[True, False, True])
    shown = torch.stack([batch["images"], batch["images_2"]][:pictures], 1)
    found = theirs(**vilt_inputs(tmp_path / "out", shown), labels=torch.tensor([1, 0, 1]))
    close(ours.scores(batch), found.logits)
    close(ours.losses(batch)["nlvr2"], found.loss)
    assert theirs.config.id2label == {0: "False", 1: "True"}
    assert found.logits.std() > 0.1


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_blip_answers_there_what_it_answers_here(tmp_path, images, shared):
    """Their class tells no logits: the loss of every answer to every question."""
    ours = head(Vqa, Blip, mode="rank", answers=ANSWERS, shared_decoder=shared)
    theirs = BlipForQuestionAnswering.from_pretrained(export(ours, tmp_path / "out")).eval()
    assert theirs.config.answers == ANSWERS
    tokenizer, special = AutoTokenizer.from_pretrained(tmp_path / "out"), ours.backbone.tokenizer
    states, mask = ours.backbone.question(images, TEXTS)
    decoder, costs = ours.decoder or ours.backbone.answer_decoder, torch.zeros(len(TEXTS), len(ANSWERS))
    for row, question in enumerate(TEXTS):
        asked = tokenizer([question], return_tensors="pt")
        asked.input_ids[:, 0] = special.enc
        for place, answer in enumerate(ANSWERS):
            written = tokenizer([answer], return_tensors="pt").input_ids
            written[:, 0] = special.dec
            loss = theirs(
                input_ids=asked.input_ids, attention_mask=asked.attention_mask, pixel_values=images[row][None],
                decoder_input_ids=written, decoder_attention_mask=torch.ones_like(written), labels=written,
            ).loss  # fmt: skip
            costs[row, place] = loss * (written.shape[1] - 1)
    for place, answer in enumerate(ANSWERS):
        tokens, real = ours.backbone.answer_tokens([answer] * len(TEXTS))
        close(answer_nll(decoder, (tokens, real), states, mask), costs[:, place])
    assert [ANSWERS[place] for place in costs.argmin(1).tolist()] == ours.answer(batch_of(images))
    assert costs.std() > 0.1


@pytest.mark.parametrize(
    ("kind", "on", "options", "why"),
    [
        (Vqa, Blip, {"answers": ANSWERS}, "a Vqa with mode=classify on a Blip has no counterpart in transformers"),
        (Vqa, Clip, {"answers": ANSWERS}, "a Vqa with mode=classify on a Clip has no counterpart"),
        (Vqa, Vilt, {}, "has not learned its answers"),
        (Nlvr2, Blip, {}, "a Nlvr2 with fusion=pair on a Blip has no counterpart"),
        (Nlvr2, Blip, {"fusion": "twin"}, "a Nlvr2 with fusion=twin on a Blip has no counterpart"),
        (Nlvr2, Clip, {"pictures": 1}, "a Nlvr2 with fusion=pair on a Clip has no counterpart"),
    ],
)
def test_heads_that_there_are_not_are_refused(tmp_path, kind, on, options, why):
    ours = head(kind, on, **options)
    for refuse in (lambda: check_export(ours), lambda: export(ours, tmp_path / "out")):
        with pytest.raises(ValueError, match=why):
            refuse()
    assert not (tmp_path / "out").exists()


def test_a_picture_alone_is_fused_with_nothing():
    check_export(head(Nlvr2, Vilt, pictures=1, fusion="twin"))


def test_a_backbone_that_there_is_not_is_refused():
    description = backbone(Vilt)
    description["arguments"]["image"] = {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2}
    for ours in (Vqa(backbone=description, optimizer={}, answers=ANSWERS), Nlvr2(backbone=description, optimizer={})):
        with pytest.raises(ValueError, match="this image encoder is not the plain one"):
            check_export(ours)
