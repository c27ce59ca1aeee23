from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from tests.hub.conftest import SIZES, TEXTS, VISION, save_clip_tokenizer, spread
from tldr.data.loading import PairsDataset
from tldr.data.tokenizer import Tokenizer
from tldr.hub.checkpoint import export, initialise, read
from tldr.model.clip import Clip
from tldr.pairs import Pairs


@pytest.fixture
def theirs(tmp_path):
    """A CLIPModel and its tokenizer, saved in ``clip``."""
    fast = save_clip_tokenizer(tmp_path / "clip")
    special = {"bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    text = {**SIZES, **special, "vocab_size": len(fast), "max_position_embeddings": 20}
    model = spread(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=10)))
    model.logit_scale.data.fill_(1.5)
    model.save_pretrained(tmp_path / "clip")
    return model


def load(folder, **options) -> Clip:
    weights = read(folder, "Clip")
    model = Clip(tokenizer=str(weights.tokenizer), optimizer={"lr": 1e-3}, **{**weights.arguments, **options}).eval()
    rest = initialise(model, weights)
    assert {name.removeprefix("text_encoder.").partition(".")[0] for name in rest} == {"head", "head_bias"}
    return model


@torch.no_grad()
def test_a_clip_computes_what_it_did(theirs, tmp_path, images):
    ours, fast = load(tmp_path / "clip"), AutoTokenizer.from_pretrained(tmp_path / "clip")
    batch = fast(TEXTS, padding=True, return_tensors="pt")
    out = theirs(**batch, pixel_values=images, return_loss=True)
    image, text = ours.embed_images(images), ours.embed_texts(TEXTS)
    torch.testing.assert_close(image, out.image_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(text, out.text_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.log_scale.exp() * image @ text.T, out.logits_per_image, atol=1e-4, rtol=1e-4)
    loss = ours.losses({"images": images, "captions": TEXTS})["itc"]  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(loss, out.loss, atol=1e-4, rtol=1e-4)
    assert loss > 0.1


@torch.no_grad()
def test_and_there_again_after_export(theirs, tmp_path, images):
    ours = load(tmp_path / "clip")
    folder = export(ours, tmp_path / "out")
    again, fast = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for (name, tensor), other in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    out = again(**fast(TEXTS, padding=True, return_tensors="pt"), pixel_values=images)
    torch.testing.assert_close(out.text_embeds, ours.embed_texts(TEXTS), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.image_embeds, ours.embed_images(images), atol=1e-4, rtol=1e-4)
    assert fast.decode(fast("A red heart").input_ids, skip_special_tokens=True) == "a red heart"
    pixels = AutoImageProcessor.from_pretrained(folder)(torch.zeros(3, 24, 24, dtype=torch.uint8), return_tensors="pt")
    expected = (-ours.image_encoder.mean / ours.image_encoder.std).expand(1, 3, 24, 24)
    torch.testing.assert_close(pixels["pixel_values"], expected, atol=1e-4, rtol=1e-4)


def test_the_tokenizer_keeps_its_roles(theirs, tmp_path):
    ours = Tokenizer(str(read(tmp_path / "clip", "Clip").tokenizer))
    fast = AutoTokenizer.from_pretrained(tmp_path / "clip")
    assert len(ours) == len(fast) == theirs.config.text_config.vocab_size
    tokens, mask = ours(["a red heart", "blue <|endoftext|>"], max_length=30)
    assert tokens[0, 0] == ours.cls == fast.bos_token_id
    lengths = mask.sum(1).tolist()
    for row, length in zip(tokens.tolist(), lengths, strict=True):
        assert row[length - 1 :] == [ours.end] * (len(row) - length + 1)  # the end also pads: the mask tells them apart
        assert ours.end not in row[: length - 1]
    assert ours.decode(tokens.tolist())[0] == "a red heart"
    with pytest.raises(ValueError, match=r"no \[DEC\]"):
        _ = ours.dec


@torch.no_grad()
def test_other_models_take_the_image_encoder(theirs, tmp_path):
    weights = read(tmp_path / "clip", "Captioner")
    assert set(weights.arguments) == {"image"}
    assert weights.arguments["image"]["resize_mode"] == "shortest"
    assert weights.tokenizer is None
    assert all(name.startswith("image_encoder.") for name in weights.state)
    assert len(weights.state) == sum(name.startswith("vision_model.") for name in theirs.state_dict()) - 4 * 2  # qkv


def test_what_is_not_a_published_clip_is_not_exported(theirs, tmp_path):
    for options in ({"loss": "siglip"}, {"text_pooling": "mean"}, {"causal": False}):
        weights = read(tmp_path / "clip", "Clip")
        model = Clip(tokenizer=str(weights.tokenizer), optimizer={}, **{**weights.arguments, **options})
        with pytest.raises(ValueError, match="loss=infonce"):
            export(model, tmp_path / "out")


@pytest.mark.parametrize("size", [(60, 31), (31, 60), (33, 24), (24, 24)])
def test_pictures_are_seen_as_there(theirs, tmp_path, size):
    """The centre of a picture, whether the folder says so or nothing, as OpenAI's says; and after export."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    pairs = Pairs.build({"uid": ["a"], "image": ["a.png"], "caption": ["a picture"]}, root=tmp_path)
    size = VISION["image_size"]
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    def seen(model: Clip) -> torch.Tensor:
        picture = PairsDataset.seen_by(model, pairs)[0]["image"]
        return ((picture / 255 - model.image_encoder.mean) / model.image_encoder.std)[None]

    ours = load(tmp_path / "clip")
    expected = processor(smooth, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen(ours), expected, atol=0.05, rtol=0)  # three levels of 255: theirs rounds elsewhere
    processor.save_pretrained(tmp_path / "clip")
    assert load(tmp_path / "clip").resize_mode == "shortest"
    folder = export(ours, tmp_path / "out")
    again = AutoImageProcessor.from_pretrained(folder)(smooth, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(again, expected)
    assert torch.equal(seen(load(folder)), seen(ours))
    square: Any = {"height": 24, "width": 24}
    options: list[Any] = [{"do_center_crop": False}, {"crop_size": square}]
    for squashing in options:
        CLIPImageProcessor(size=square, **squashing).save_pretrained(tmp_path / "clip")
        assert load(tmp_path / "clip").resize_mode == "squash"


def test_a_crop_of_another_size_is_refused(theirs, tmp_path):
    crop: Any = {"height": 24, "width": 24}
    CLIPImageProcessor(size={"shortest_edge": 30}, crop_size=crop).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: pictures are resized to 30 pixels and cut to 24"):
        load(tmp_path / "clip")
