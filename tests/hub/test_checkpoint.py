import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

from tests.hub.conftest import SIZES, TEXTS, VISION, WORDS, spread
from tldr.data.tokenizer import Tokenizer
from tldr.hub.checkpoint import Weights, check_export, export, initialise, read
from tldr.model.blip import Blip
from tldr.model.captioner import Captioner
from tldr.model.clip import Clip
from tldr.model.vilt import Vilt
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder

TOKENIZER = Tokenizer.learn(TEXTS * 2, vocab_size=40).json
CONFIG = BertConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=12)
IMAGE: dict[str, Any] = {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2}
TEXT: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "max_length": 14}


@pytest.fixture
def bert(tmp_path):
    spread(BertForMaskedLM(CONFIG)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def build(kind, **options):
    torch.manual_seed(1)
    return kind(**{"tokenizer": TOKENIZER, "image": IMAGE, "text": TEXT, "optimizer": {"lr": 1e-3}, **options})


def save(model, folder):
    """As Lightning does."""
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    folder.mkdir(exist_ok=True)
    torch.save(checkpoint, folder / "model.ckpt")
    return folder


def test_every_key_that_does_not_fit_is_listed(bert):
    weights = read(bert, "TextTransformer")
    state = dict(weights.state)
    state["nonsense.weight"] = state.pop("layers.0.inner.weight")
    for name in ("layers.1.outer.bias", "head.0.weight"):
        state[name] = torch.zeros(3)
    model = TextTransformer(len(WORDS), **weights.arguments["text"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit this TextTransformer") as error:
        initialise(model, Weights("BERT", {}, state, weights.covers))
    lines = str(error.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "missing: layers.0.inner.weight",
        "shape: head.0.weight is (3,) there, (16, 16) here",
        "shape: layers.1.outer.bias is (3,) there, (16,) here",
        "unknown: nonsense.weight",
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_of_another_depth_or_vocabulary_does_not_fit(bert):
    weights = read(bert, "TextTransformer")
    with pytest.raises(ValueError, match=r"unknown: layers\.1\.attention\.key\.bias"):
        initialise(TextTransformer(len(WORDS), **{**weights.arguments["text"], "depth": 1}), weights)
    with pytest.raises(ValueError, match=r"shape: words\.weight is \(13, 16\) there, \(20, 16\) here"):
        initialise(TextTransformer(20, **weights.arguments["text"]), weights)


def test_positions_of_a_longer_text_are_cut(bert):
    weights = read(bert, "TextTransformer")
    model = TextTransformer(len(WORDS), **{**weights.arguments["text"], "max_length": 5})
    assert initialise(model, weights) == []
    assert torch.equal(model.positions.weight, weights.state["positions.weight"][:5])
    with pytest.raises(ValueError, match=r"shape: positions\.weight is \(12, 16\) there, \(15, 16\) here"):
        initialise(TextTransformer(len(WORDS), **{**weights.arguments["text"], "max_length": 15}), weights)


def test_a_key_that_nobody_knows_is_kept_for_the_error(bert):
    state = safetensors.torch.load_file(bert / "model.safetensors")
    state["bert.adapter.weight"] = torch.zeros(2)
    safetensors.torch.save_file(state, bert / "model.safetensors")
    weights = read(bert, "TextTransformer")
    with pytest.raises(ValueError, match=r"unknown: bert\.adapter\.weight"):
        initialise(TextTransformer(len(WORDS), **weights.arguments["text"]), weights)


def test_shards_are_read_as_one(tmp_path, bert):
    expected = read(bert, "TextTransformer").state
    theirs = BertForMaskedLM.from_pretrained(bert)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    found = read(tmp_path / "shards", "TextTransformer").state
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


class Hostile:
    def __reduce__(self):
        return print, ("your weights run code",)


def test_no_pickled_code_runs(tmp_path, bert, capsys):
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps({"bert": Hostile()}))
    with pytest.raises(ValueError, match="runs no pickled code"):
        read(bert, "TextTransformer")
    torch.save({"bert": Hostile()}, bert / "pytorch_model.bin")
    with pytest.raises(ValueError, match="runs no pickled code"):
        read(bert, "TextTransformer")
    assert capsys.readouterr().out == ""


def test_errors_say_what_is_wrong(tmp_path, bert):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither config\.json nor model\.ckpt"):
        read(tmp_path / "empty", "Blip")
    with pytest.raises(ValueError, match="neither a folder, a checkpoint nor a reachable Hugging Face id"):
        read("nobody/has-this", "Blip")
    spread(ViTModel(ViTConfig(**VISION))).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="TextTransformer has no image encoder"):
        read(tmp_path / "vit", "TextTransformer")
    (bert / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type='gpt2'; choose from bert, blip"):
        read(bert, "Blip")
    (bert / "model.safetensors").unlink()
    (bert / "config.json").write_text(CONFIG.to_json_string())
    with pytest.raises(ValueError, match="holds no weights"):
        read(bert, "Blip")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="names no class"):
        read(tmp_path / "foreign.ckpt", "Blip")


VIT = {"backbone": "vit", "image_size": 32, "width": 16, "depth": 1, "heads": 2}
EXPORTED: list[tuple[Callable[[], nn.Module], str]] = [  # how to build it, and why it is refused
    (lambda: nn.Linear(2, 2), "a Linear has no counterpart in transformers"),
    (lambda: ImageEncoder(**IMAGE), "this image encoder is not the plain one"),
    (lambda: ImageEncoder(**VIT), ""),
    (lambda: TextTransformer(20, **TEXT, pre_norm=True), "only post-norm text"),
    (lambda: TextTransformer(20, **TEXT), ""),
    (lambda: build(Blip, queue_size=0, text_pooling="mean"), "text_pooling='mean'"),
    (lambda: build(Blip, queue_size=0), "this image encoder is not the plain one"),
    (lambda: build(Blip, queue_size=0, image=VIT), ""),
    (lambda: build(Clip), "a CLIPModel has loss=infonce"),
    (lambda: build(Captioner), "this image encoder is not the plain one"),
    (lambda: build(Captioner, image=VIT), ""),
    (lambda: build(Vilt, text={**TEXT, "depth": 0}), "this image encoder is not the plain one"),
    (lambda: build(Vilt, image=VIT, text={**TEXT, "depth": 0, "norm_eps": 1e-6}), ""),
]


@pytest.mark.parametrize(("make", "why"), EXPORTED)
def test_what_is_refused_can_be_known_before(tmp_path, make, why):
    """`check_export` says what `export` says, and what there is instead; and lets pass what that writes."""
    module = make()
    if why:
        for refuse in (lambda: check_export(module), lambda: export(module, tmp_path / "out")):
            with pytest.raises(ValueError, match=why):
                refuse()
        assert not (tmp_path / "out").exists()
        with pytest.raises(ValueError, match=r"docs/models\.md lists what can be exported"):
            check_export(module)
    else:
        check_export(module)
        assert export(module, tmp_path / "out") == tmp_path / "out"


# --------------------------------------------------------------------------------------------- checkpoints of ours


def test_a_checkpoint_of_the_same_class_is_taken_whole_but_for_the_queue(tmp_path):
    model = build(Blip, embed_dim=8, queue_size=12)
    model.queue.added += 5
    folder = save(model, tmp_path / "blip")
    weights = read(folder, "Blip")
    assert weights.tokenizer == TOKENIZER
    assert not {"queue_size", "optimizer", "tokenizer"} & set(weights.arguments)
    other = Blip(tokenizer=TOKENIZER, optimizer={}, queue_size=3, **weights.arguments)
    assert initialise(other, weights) == []
    assert other.queue.filled == 0
    for name, tensor in model.named_parameters():
        assert torch.equal(other.state_dict()[name], tensor), name
    state = {name: tensor for name, tensor in weights.state.items() if name != "matcher.weight"}
    with pytest.raises(ValueError, match=r"missing: matcher\.weight"):
        initialise(other, replace(weights, state=state))


@pytest.mark.parametrize("rates", [(0.3, None), (None, 0.3), (0.3, 0.2)])
def test_how_many_captions_were_wrong_is_not_taken_along(tmp_path, rates):
    weights = read(save(build(Captioner, noise_rate=rates[0]), tmp_path / "captioner"), "Captioner")
    assert "noise_rate" not in weights.arguments
    other = Captioner(tokenizer=TOKENIZER, optimizer={}, noise_rate=rates[1], **weights.arguments)
    assert initialise(other, weights) == []
    assert (None if other.noise is None else float(other.noise)) == pytest.approx(rates[1])


def test_a_captioner_takes_image_encoder_and_decoder_of_a_blip(tmp_path):
    blip = build(Blip, embed_dim=8, queue_size=0)
    weights = read(save(spread(blip), tmp_path / "blip") / "model.ckpt", "Captioner")
    captioner = build(Captioner)
    assert initialise(captioner, weights) == ["null"]
    tokens = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(0))
    image = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = captioner.eval().decoder(tokens, image=image, causal=True)
        torch.testing.assert_close(mine, blip.encoders.text(tokens, image=image, causal=True))
    again = build(Blip, embed_dim=8, queue_size=0)
    rest = initialise(again, read(save(captioner, tmp_path / "captioner"), "Blip"))
    assert not any("image.vit" in name or "decoder_attention" in name for name in rest)
    assert any(".attention." in name for name in rest)  # of the encoder, which a captioner has not
    with torch.no_grad():
        torch.testing.assert_close(again.eval().encoders.text(tokens, image=image, causal=True), mine)


def test_clip_gives_blip_both_encoders(tmp_path):
    clip = build(Clip, embed_dim=8)
    blip = build(Blip, embed_dim=8, queue_size=0)
    rest = initialise(blip, read(save(spread(clip), tmp_path / "clip"), "Blip"))
    assert all(any(part in name for part in ("cross_", "_projection", "matcher", "temperature")) for name in rest)
    tokens = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(blip.eval().encoders.text(tokens), clip.text_encoder(tokens))
        torch.testing.assert_close(blip.teacher.text(tokens), clip.text_encoder(tokens))


def test_batch_norms_travel_too(tmp_path):
    """The small encoder's statistics are buffers, no parameters."""
    clip = build(Clip, embed_dim=8)
    norm = clip.image_encoder.vit.patch_embed.stem[1]
    norm.running_mean += 3.0
    encoder = ImageEncoder(**IMAGE)
    assert initialise(encoder, read(save(clip, tmp_path / "clip"), "ImageEncoder")) == []
    assert encoder.vit.patch_embed.stem[1].running_mean.tolist() == [3.0] * 8


def test_openclips_files_are_told(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is in OpenCLIP's own format; the same model in transformers' is read"):
        read(tmp_path, "Clip")
    torch.save({"state_dict": {"module.visual.proj": torch.zeros(1)}}, tmp_path / "epoch_latest.pt")
    with pytest.raises(ValueError, match=r"is not a checkpoint of tldr's but OpenCLIP's"):
        read(tmp_path / "epoch_latest.pt", "Clip")
