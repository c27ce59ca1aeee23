from functools import partial
from typing import Any

import pytest
import torch

from tests.model.conftest import save
from tldr.data.tokenizer import Tokenizer
from tldr.model.blip import Blip
from tldr.model.captioner import Captioner
from tldr.model.classifier import Classifier
from tldr.model.clip import Clip
from tldr.model.vilt import Vilt
from tldr.tasks.begin import Beginning
from tldr.tasks.scorer import refuse_chance

IMAGE = {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2}
TEXT = {"width": 16, "depth": 1, "heads": 2, "max_length": 48}
OTHER = {"image": {**IMAGE, "width": 8, "drop_path": 0.1}, "text": {**TEXT, "depth": 2, "max_length": 12}}
OPTIMIZER = {"lr": 1e-3}


def test_the_configured_model_is_built_where_there_is_no_source():
    beginning = Beginning(partial(Clip, image=IMAGE, text=TEXT, optimizer=OPTIMIZER), image_size=64)
    assert beginning.tokenizer is None
    module = beginning.build(Tokenizer.learn(["a"]).json)
    assert module.image_size == 64
    assert module.hparams["image"] == {**IMAGE, "image_size": 64}
    assert module.hparams["text"] == TEXT


def test_a_source_brings_its_architecture_weights_and_tokenizer(tiny_checkpoint, tiny_vqvlm, capsys):
    beginning = Beginning(partial(Captioner, **OTHER, optimizer=OPTIMIZER), tiny_checkpoint)
    beginning.tell()
    said = capsys.readouterr().out
    assert said.startswith("init_from: the checkpoint overrides the configuration: model.image.")
    assert all(f"{key}={has} (not {asked})" in said for key, (asked, has) in sorted(beginning.overruled.items())[:4])
    assert beginning.overruled["model.image.width"] == (8, tiny_vqvlm.hparams["image"]["width"])
    assert "model.image.drop_path" not in beginning.overruled
    larger = Beginning(partial(Captioner, **OTHER, optimizer=OPTIMIZER), tiny_checkpoint, image_size=64)
    assert "model.image.image_size" not in larger.overruled
    assert beginning.tokenizer == tiny_vqvlm.tokenizer.json
    module = beginning.build(beginning.tokenizer)
    assert module.hparams["image"] == {**tiny_vqvlm.hparams["image"], "drop_path": 0.1, "pretrained": False}
    assert module.hparams["text"] == {**tiny_vqvlm.hparams["text"], "max_length": 12}
    assert module.hparams["optimizer"] == OPTIMIZER
    mine, theirs = module.state_dict(), tiny_vqvlm.state_dict()
    assert [name for name in mine if "positions" not in name and not torch.equal(mine[name], theirs[name])] == []
    assert "arrays for Captioner" in capsys.readouterr().out


def test_a_codebook_that_is_asked_for_is_not_dropped(tmp_path):
    tokenizer = Tokenizer.learn(["a b"]).json
    source = save(Captioner(tokenizer=tokenizer, image=IMAGE, text=TEXT, optimizer=OPTIMIZER), tmp_path / "plain")
    model = partial(Captioner, image=IMAGE, text=TEXT, optimizer=OPTIMIZER, quantizer={"codebook_size": 8})
    with pytest.raises(ValueError, match=r"plain has no quantizer, and model\.quantizer asks for one"):
        Beginning(model, source)


def test_how_a_codebook_learns_is_not_the_sources(tmp_path):
    tokenizer = Tokenizer.learn(["a b"]).json
    shared: dict[str, Any] = {"image": IMAGE, "text": TEXT, "optimizer": OPTIMIZER}
    quantizer = {"codebook_size": 8, "init": "random", "decay": 0.9, "rotation_trick": True}
    source = save(Captioner(tokenizer=tokenizer, quantizer=quantizer, **shared), tmp_path / "source")
    asked = {"codebook_size": 4, "decay": 0.99, "commitment": 2.0, "dead_below": 0, "rotation_trick": False}
    module = Beginning(partial(Captioner, quantizer=asked, **shared), source).build(tokenizer)
    assert dict(module.hparams["quantizer"]) == {**asked, "codebook_size": 8, "init": "random"}


@pytest.mark.parametrize(
    ("model", "pretraining", "fine_tuning"),
    [
        (Blip, {}, {"objectives": ("lm",), "prompt": "a picture of ", "label_smoothing": 0.0, "queue_size": 0}),
        (Blip, {"objectives": ("lm",)}, {"objectives": ("itc", "itm"), "gather_negatives": True, "queue_size": 8}),
        (Vilt, {"masked": 0.4}, {"ranked": 15, "wpa": 0.0}),
        (Captioner, {"null_share": 0.3, "noise_rate": 0.3}, {"null_share": 0.0, "label_smoothing": 0.1}),
        (Clip, {"embed_dim": 8, "causal": True}, {"temperature": 0.01}),
        (Classifier, {"members": 2, "classes": ["a", "b"], "count": 50}, {"early_steps": 3, "column": "label"}),
    ],
)
def test_how_a_model_learns_is_not_the_sources(tmp_path, model, pretraining, fine_tuning):
    """Fine-tuning has its own objectives: those of the checkpoint's training are not taken along."""
    shared = {"tokenizer": Tokenizer.learn(["a b"]).json, "image": IMAGE, "optimizer": OPTIMIZER}
    shared["text"] = {**TEXT, "depth": 0} if model is Vilt else TEXT
    if model is Classifier:
        shared = {"image": {"backbone": "convnet", "channels": 4, "image_size": 32}, "optimizer": OPTIMIZER}
    before = save(model(**shared, **pretraining), tmp_path / "before")
    module = Beginning(partial(model, **{**shared, **fine_tuning}), before).build(shared.get("tokenizer"))
    for name, value in fine_tuning.items():
        assert module.hparams[name] == value, name
    for name in pretraining.keys() & {"embed_dim", "causal", "members", "classes", "count"}:
        assert module.hparams[name] == pretraining[name], name


def test_a_tower_of_another_model_begins_and_the_rest_is_named(tiny_checkpoint, tiny_vqvlm, capsys):
    beginning = Beginning(partial(Blip, **OTHER, optimizer=OPTIMIZER, queue_size=0), tiny_checkpoint, image_size=64)
    module = beginning.build(beginning.tokenizer)
    assert module.image_size == 64  # positions of 32 pixels were interpolated
    mine = module.state_dict()
    assert torch.equal(mine["encoders.image.vit.norm.weight"], tiny_vqvlm.state_dict()["image_encoder.vit.norm.weight"])
    said = capsys.readouterr().out.partition("newly initialised: ")[2]
    assert "matcher.weight" in said
    assert "encoders.image.vit" not in said


def test_what_rests_on_weights_of_chance_is_no_signal(tiny_checkpoint, tmp_path):
    """What a scorer begun from another model says may be decided by what that does not have."""
    blip = Beginning(partial(Blip, **OTHER, optimizer=OPTIMIZER, queue_size=0), tiny_checkpoint)
    judge = blip.build(blip.tokenizer)
    assert {"matcher.weight", "matcher.bias"} <= set(judge.unlearned(["alignment"]))
    with pytest.raises(ValueError, match=r"scorers\.blip\.checkpoint lacks .* for alignment: .* train\.py model="):
        refuse_chance(judge, ["alignment"], "scorers.blip.checkpoint")
    assert not Beginning(partial(Blip, **OTHER, optimizer=OPTIMIZER)).build(blip.tokenizer).unlearned(["alignment"])

    published = save(judge, tmp_path / "blip")  # as BLIP's captioner is published: without null picture and codebook
    quantizer = {"codebook_size": 4, "init": "random"}
    model = partial(Captioner, image=IMAGE, text=TEXT, optimizer=OPTIMIZER, quantizer=quantizer)
    captioner = Beginning(model, published)
    writes = captioner.build(captioner.tokenizer)
    assert "null" in writes.unlearned(["alignment"])
    assert writes.unlearned(["codes"]) == ["the codebook"]
    assert writes.unlearned(["embedding", "tokens"]) == []


def test_a_picture_size_needs_a_tower(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"image_size=64, but Blip has no image tower"):
        Beginning(partial(Blip, text=TEXT), image_size=64)
    with pytest.raises(ValueError, match="nowhere"):
        Beginning(partial(Clip, **OTHER, optimizer=OPTIMIZER), [tiny_checkpoint, tiny_checkpoint / "nowhere"])
