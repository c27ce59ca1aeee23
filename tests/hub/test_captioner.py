"""Captioners and VQ-VLMs as folders of Hugging Face's, opened as a stranger does: by the code that lies in them."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, dynamic_module_utils

from tests.hub.conftest import TEXTS, VISION, same_weights, save_bert_tokenizer, spread
from tldr.data.tokenizer import Tokenizer
from tldr.hub.checkpoint import export, initialise, read
from tldr.model.captioner import Captioner
from tldr.model.clip import Clip

IMAGE = {
    "backbone": "vit", "image_size": 24, "patch_size": 8, "width": VISION["hidden_size"], "depth": 2, "heads": 4,
}  # fmt: skip
TEXT = {"width": 12, "depth": 2, "heads": 2, "max_length": 14}
END = 2.0  # what [SEP] gets more than other words, so that captions end


def build(tmp_path, *, codes: int = 0, **options) -> Captioner:
    save_bert_tokenizer(tmp_path / "words")
    torch.manual_seed(0)
    quantizer = {"codebook_size": codes} if codes else None
    tokenizer = Tokenizer.pretrained(str(tmp_path / "words")).json
    model = Captioner(tokenizer=tokenizer, image=IMAGE, text=TEXT, optimizer={}, quantizer=quantizer, **options)
    spread(model)
    model.decoder.head_bias.data[3] += END
    if model.quantizer is not None:  # as after training: codes of different use
        book: Any = model.quantizer.vq._codebook
        book.embed.normal_()
        book.cluster_size.copy_(1 + torch.arange(codes)[None])
        book.embed_avg.copy_(book.embed * book.cluster_size[..., None])
        model.quantizer.active.fill_(True)
    return model.eval()


def reopen(folder, monkeypatch, tmp_path) -> Any:
    """The folder's model, where there is no tldr."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    with monkeypatch.context() as without_us:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tldr"]:
            without_us.delitem(sys.modules, name)
        without_us.setitem(sys.modules, "tldr", None)
        theirs = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(theirs).__module__.startswith("transformers_modules.")
    return theirs


@pytest.mark.parametrize("codes", [0, 7])
@pytest.mark.parametrize("prompt", ["", "on the"])
@torch.no_grad()
def test_it_says_there_what_it_says_here(tmp_path, images, monkeypatch, codes, prompt):
    ours = build(tmp_path, codes=codes, prompt=prompt)
    folder = export(ours, tmp_path / "out")
    theirs = reopen(folder, monkeypatch, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pictures = torch.cat([images, 3 * images, images.flip(2), images.flip(3), images.roll(1, 1)])

    texts = [f"{theirs.config.prompt} {text}".strip() for text in TEXTS]
    numbers = {"rows": torch.arange(3), "image_ids": torch.arange(3)}
    batch: Any = {"images": images, "captions": TEXTS, "columns": {}, "errors": [], **numbers}
    said = ours.signals(batch)
    given = tokenizer(texts, padding=True, return_tensors="pt")
    torch.testing.assert_close(theirs.alignment(images, **given), said["alignment"], atol=1e-4, rtol=1e-4)
    assert said["alignment"].abs().min() > 0.1
    if codes:
        assert torch.equal(theirs.codes(images), said["codes"])
        assert len(said["codes"].unique()) > 2
    else:
        with pytest.raises(ValueError, match="no codebook"):
            theirs.codes(images)

    rows = theirs.generate(pictures, max_new_tokens=9, do_sample=False)
    beginning = ours._tokenize([""])[0][0, :-1]
    assert (rows[:, : len(beginning)] == beginning).all()
    expected = tokenizer.batch_decode(rows[:, len(beginning) :], skip_special_tokens=True)
    found = ours.generate(pictures, strategy="greedy", max_length=9, min_length=0)
    assert found == expected
    assert len(set(found)) > 3


@pytest.mark.parametrize("codes", [0, 7])
def test_it_comes_back(tmp_path, images, codes):
    ours = build(tmp_path, codes=codes)
    weights = read(export(ours, tmp_path / "out"), "Captioner")
    assert weights.arguments["quantizer"] == ({"codebook_size": 7} if codes else None)
    again = Captioner(tokenizer=str(weights.tokenizer), optimizer={}, **weights.arguments)
    assert initialise(again, weights) == []
    same_weights(ours, again)
    clip = Clip(tokenizer=ours.tokenizer.json, image=IMAGE, text=TEXT, optimizer={}, embed_dim=8)
    initialise(clip, read(tmp_path / "out", "Clip"))
    same_weights(clip.image_encoder, ours.image_encoder)


def test_missing_codes_are_an_error(tmp_path):
    folder = export(build(tmp_path, codes=7), tmp_path / "out")
    weights = read(folder, "Captioner")
    state = {name: tensor for name, tensor in weights.state.items() if not name.startswith("quantizer.")}
    again = Captioner(tokenizer=str(weights.tokenizer), optimizer={}, **weights.arguments)
    with pytest.raises(ValueError, match=r"missing: quantizer\.vq\._codebook\.embed"):
        initialise(again, replace(weights, state=state))


def test_a_codebook_that_has_not_begun_is_refused(tmp_path):
    ours = build(tmp_path, codes=7)
    assert ours.quantizer is not None
    ours.quantizer.active.fill_(False)
    with pytest.raises(ValueError, match="joins after 0 steps, and has not"):
        export(ours, tmp_path / "out")
