import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipModel,
)

from tests.hub.conftest import SIZES, TEXTS, VISION, WORDS, same_weights, save_bert_tokenizer, spread
from tldr.hub.checkpoint import export, initialise, read
from tldr.model.blip import Blip
from tldr.nn.generate import generate
from tldr.nn.vision import CLIP_MEAN

SPECIAL = {"bos_token_id": len(WORDS), "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # [DEC], [SEP], [PAD]
ENC = len(WORDS) + 1
END = 4.0  # what [SEP] gets more than other words, so that captions end


def config(**text) -> BlipConfig:
    text = {**SIZES, **SPECIAL, "vocab_size": len(WORDS) + 2, "max_position_embeddings": 14, **text}
    return BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=6)


def save(kind, folder, **text):
    theirs = spread(kind(config(**text)))
    theirs.save_pretrained(folder)
    save_bert_tokenizer(folder)
    return theirs


def load(folder) -> tuple[Blip, list[str]]:
    weights = read(folder, "Blip")
    torch.manual_seed(0)
    options = {"queue_size": 0, "optimizer": {"lr": 1e-3}, "label_smoothing": 0.0}
    model = Blip(tokenizer=str(weights.tokenizer), **{**weights.arguments, **options})
    rest = initialise(model, weights)
    return model.eval(), rest


def tokens_of(folder, start=None):
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if start is not None:
        batch["input_ids"][:, 0] = start
    return batch


@torch.no_grad()
def check_retrieval(ours: Blip, theirs, folder, images):
    plain = theirs(**tokens_of(folder), pixel_values=images, use_itm_head=False)
    similarity = ours.embed_images(images) @ ours.embed_texts(TEXTS).T
    torch.testing.assert_close(similarity, plain.itm_score, atol=1e-4, rtol=1e-4)
    scores = theirs(**tokens_of(folder, start=ENC), pixel_values=images).itm_score
    image = ours.image_tokens(images)
    torch.testing.assert_close(ours._match_scores(image, *ours._tokenize(TEXTS)), scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.match(image, TEXTS), scores[:, 1] - scores[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def check_captioning(ours: Blip, theirs, folder, images):
    batch = tokens_of(folder, start=SPECIAL["bos_token_id"])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    out = theirs(**batch, pixel_values=images, labels=labels)
    tokens, mask = ours._tokenize(TEXTS, start=ours.tokenizer.dec)
    image = ours.image_tokens(images)
    logits = ours.encoders.text.logits(ours.encoders.text(tokens, mask, image=image, causal=True))
    torch.testing.assert_close(logits[mask], out.logits[mask], atol=1e-4, rtol=1e-4)
    loss = F.cross_entropy(logits[:, :-1][mask[:, 1:]], tokens[:, 1:][mask[:, 1:]])
    torch.testing.assert_close(loss, out.loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours._write_loss(image, TEXTS), out.loss, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def check_captions(ours: Blip, theirs, images):
    """Greedy and by beam, as rows of tokens: texts would hide what is no word.

    Their beam search may prefer a text that is cut off at the limit to one that ended; ours never does. Where theirs
    ended, it is the best of all, and ours must be the same.
    """
    pictures = torch.cat([images, 3 * images, images.flip(2), images.flip(3), images.roll(1, 1)])
    image, prompt = ours.image_tokens(pictures), torch.tensor([ours.tokenizer.dec])
    for beams in (1, 2, 3):
        how = {"num_beams": beams, "do_sample": False, "early_stopping": "never" if beams > 1 else False}
        rows = theirs.generate(pictures, max_new_tokens=9, min_new_tokens=1, **how)[:, 1:].tolist()
        strategy = {"strategy": "greedy"} if beams == 1 else {"strategy": "beam", "num_beams": beams}
        options = {"end": 3, "max_length": 9, "min_length": 1, **strategy}
        found = generate(ours.encoders.text, image, prompt, **options)
        ended = [i for i, row in enumerate(rows) if 3 in row or beams == 1]
        expected = [rows[i][: rows[i].index(3)] if 3 in rows[i] else rows[i] for i in ended]
        assert [found[i] for i in ended] == expected, beams
        assert len(ended) > len(rows) / 2
        assert len({tuple(row) for row in expected}) > 3
        assert len({len(row) for row in expected}) > 2


def test_a_retriever_computes_what_it_did(tmp_path, images):
    theirs = save(BlipForImageTextRetrieval, tmp_path)
    ours, rest = load(tmp_path)
    check_retrieval(ours, theirs, tmp_path, images)
    learned = [name for name in rest if not name.startswith("teacher.") and ".decoder_attention." not in name]
    assert {name.removeprefix("encoders.text.").partition(".")[0] for name in learned} == {
        "head", "head_bias",
    }  # fmt: skip
    same_weights(ours.teacher.image, ours.encoders.image)


def test_a_captioner_computes_what_it_did(tmp_path, images):
    theirs = save(BlipForConditionalGeneration, tmp_path)
    with torch.no_grad():
        theirs.text_decoder.cls.predictions.bias[3] += END
    theirs.save_pretrained(tmp_path)
    ours, rest = load(tmp_path)
    check_captioning(ours, theirs, tmp_path, images)
    check_captions(ours, theirs, images)
    assert not any(".decoder_attention." in name for name in rest)
    assert any(".attention." in name for name in rest)


def test_a_blip_of_ours_is_both_there_and_comes_back(tmp_path, images):
    save(BlipForImageTextRetrieval, tmp_path / "start")
    ours, _ = load(tmp_path / "start")
    spread(ours.encoders)
    ours.temperature.data.fill_(0.0123)
    ours.encoders.text.head_bias.data[3] += END
    ours.teacher.load_state_dict(ours.encoders.state_dict())
    folder = export(ours, tmp_path / "out")
    retriever = BlipForImageTextRetrieval.from_pretrained(folder / "retrieval").eval()
    captioner = BlipForConditionalGeneration.from_pretrained(folder / "captioning").eval()
    check_retrieval(ours, retriever, folder / "retrieval", images)
    check_captioning(ours, captioner, folder / "captioning", images)
    check_captions(ours, captioner, images)
    again, rest = load(folder)  # both parts, found to be of one model
    assert rest == []
    same_weights(ours, again)
    processor = BlipImageProcessor.from_pretrained(folder / "retrieval")
    assert processor.image_mean == pytest.approx(CLIP_MEAN)


def test_a_blip_model_gives_both_encoders(tmp_path, images):
    theirs = save(BlipModel, tmp_path)
    ours, _ = load(tmp_path)
    tokens, mask = ours._tokenize(TEXTS)
    with torch.no_grad():
        expected = theirs.text_model(**tokens_of(tmp_path)).last_hidden_state
        torch.testing.assert_close(ours.encoders.text(tokens, mask)[mask], expected[mask], atol=1e-4, rtol=1e-4)
        expected = theirs.vision_model(images).last_hidden_state
        torch.testing.assert_close(ours.encoders.image(images), expected, atol=1e-4, rtol=1e-4)


def test_parts_fine_tuned_apart_are_no_model(tmp_path):
    save(BlipForImageTextRetrieval, tmp_path / "retrieval")
    with torch.no_grad():
        theirs = save(BlipForConditionalGeneration, tmp_path / "captioning")
        theirs.vision_model.post_layernorm.bias.add_(0.1)
    theirs.save_pretrained(tmp_path / "captioning")
    with pytest.raises(ValueError, match=r"differ in .*encoders\.image\.vit\.norm\.bias"):
        read(tmp_path, "Blip")
    save(BlipForConditionalGeneration, tmp_path / "captioning", num_attention_heads=4)
    with pytest.raises(ValueError, match="not of one model"):
        read(tmp_path, "Blip")


def test_the_captioner_takes_the_decoder(tmp_path):
    theirs = save(BlipForConditionalGeneration, tmp_path)
    weights = read(tmp_path, "Captioner")
    query = theirs.text_decoder.bert.encoder.layer[1].attention.self.query.weight
    assert torch.equal(weights.state["decoder.layers.1.attention.query.weight"], query)
    assert set(weights.arguments) == {"image", "text"}


def test_what_cannot_be_said_is_an_error(tmp_path):
    save(BlipForQuestionAnswering, tmp_path / "vqa")
    with pytest.raises(ValueError, match="share nothing"):
        read(tmp_path / "vqa", "Blip")
    save(BlipForImageTextRetrieval, tmp_path / "retrieval", hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        read(tmp_path / "retrieval", "Blip")
    save(BlipForImageTextRetrieval, tmp_path / "itm")
    ours, _ = load(tmp_path / "itm")
    ours.encoders.text_pooling = "mean"
    with pytest.raises(ValueError, match="text_pooling='mean'"):
        export(ours, tmp_path / "out")
