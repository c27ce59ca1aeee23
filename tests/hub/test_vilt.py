import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltModel,
)

from tests.hub.conftest import SIZES, TEXTS, WORDS, close, save_bert_tokenizer, spread, vilt_inputs
from tldr.data.tokenizer import Tokenizer
from tldr.hub.checkpoint import export, initialise, read
from tldr.model.vilt import Vilt

V, PATCHES = len(WORDS), 9  # without BLIP's two tokens
CONFIG = ViltConfig(
    **SIZES, vocab_size=V, max_position_embeddings=12, image_size=24, patch_size=8, pad_token_id=0,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vilt"


def save(kind, folder, config: ViltConfig = CONFIG):
    theirs = spread(kind(config))
    theirs.save_pretrained(folder)
    save_bert_tokenizer(folder)
    return theirs


def load(folder, **more) -> tuple[Vilt, list[str]]:
    weights = read(folder, "Vilt")
    assert weights.tokenizer is not None
    model = Vilt(tokenizer=weights.tokenizer, optimizer={}, **(dict(weights.arguments) | more)).eval()
    return model, initialise(model, weights)


def shuffled(compute):
    """What ``compute`` gives, and in which order it took each picture's patches (Hugging Face's ViLT draws it)."""
    torch.manual_seed(0)
    found = compute()
    torch.manual_seed(0)
    order = torch.stack([torch.multinomial(torch.ones(PATCHES), PATCHES) for _ in TEXTS])
    return found, torch.cat([torch.zeros(len(TEXTS), 1, dtype=torch.long), order + 1], 1)  # the class token is first


@torch.no_grad()
def test_a_vilt_computes_what_it_did(folder, images):
    """Every hidden state, of words and patches, and the pooled feature."""
    theirs = save(ViltModel, folder)
    model, rest = load(folder)
    assert {name.removeprefix("network.text.").partition(".")[0] for name in rest} == {"head", "head_bias", "matcher"}
    batch = vilt_inputs(folder, images)
    tokens, mask = model._tokenize(TEXTS)
    assert torch.equal(tokens, batch["input_ids"])
    expected, order = shuffled(lambda: theirs(**batch, output_hidden_states=True))
    length = tokens.shape[1]

    states = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: states.append(out)) for block in model.network.image.vit.blocks
    ]
    words, seen = model.network(model.image_tokens(images), tokens, mask)
    for hook in hooks:
        hook.remove()
    rows = torch.arange(len(TEXTS))[:, None]
    close(words[mask], expected.last_hidden_state[:, :length][mask])
    close(seen[rows, order], expected.last_hidden_state[:, length:])
    close(model.network.pool(words), expected.pooler_output)
    close(model.joint(images, TEXTS), expected.pooler_output)
    # On the CPU rows are read by length, one group each here: the blocks' states in that order.
    depth, by_length = CONFIG.num_hidden_layers, mask.sum(1).argsort(stable=True).tolist()
    for layer in range(depth):
        for group, row in enumerate(by_length):
            real = int(mask[row].sum())
            got, wanted = states[group * depth + layer][0], expected.hidden_states[layer + 1][row]
            close(got[PATCHES + 1 :], wanted[:real])
            close(got[: PATCHES + 1][order[row]], wanted[length:])


@torch.no_grad()
def test_masked_words_and_their_loss(folder, images):
    theirs = save(ViltForMaskedLM, folder)
    model, rest = load(folder)
    assert rest == ["matcher.weight", "matcher.bias"]
    batch = vilt_inputs(folder, images)
    tokens, mask = batch["input_ids"], batch["attention_mask"].bool()
    chosen = torch.zeros_like(mask)
    chosen[:, 1] = True
    read = tokens.masked_fill(chosen, model.tokenizer.mask)
    expected = theirs(**{**batch, "input_ids": read}, labels=tokens.masked_fill(~chosen, -100))
    patches = model.image_tokens(images)
    logits = model.network.text.logits(model.network(patches, read, mask)[0])[..., :V]
    close(logits[mask], expected.logits[mask])
    loss = torch.nn.functional.cross_entropy(logits[chosen], tokens[chosen])
    close(loss, expected.loss)


@torch.no_grad()
def test_one_score_is_the_log_odds(folder, images):
    theirs = save(ViltForImageAndTextRetrieval, folder)
    model, _ = load(folder)
    expected = theirs(**vilt_inputs(folder, images)).logits[:, 0]
    close(model.match(model.image_tokens(images), TEXTS), expected)
    assert not model.matcher.weight[0].any()


@torch.no_grad()
def test_the_second_of_two_pictures_has_its_type(folder, images):
    config = ViltConfig(**{**CONFIG.to_dict(), "modality_type_vocab_size": 3, "num_images": 2})
    theirs = save(ViltForImagesAndTextClassification, folder, config)
    model, _ = load(folder)
    batch = vilt_inputs(folder, images)
    for place in (0, 1):
        expected = theirs.vilt(**batch, image_token_type_idx=1 + place).pooler_output
        close(model.joint(images, TEXTS, place=place), expected)
    first, second = (model.joint(images, TEXTS, place=place) for place in (0, 1))
    assert not torch.allclose(first, second)


@torch.no_grad()
def test_who_knows_one_picture_takes_the_second_for_it(folder, images):
    save(ViltModel, folder)
    model, _ = load(folder)
    torch.testing.assert_close(model.joint(images, TEXTS, place=1), model.joint(images, TEXTS))


@torch.no_grad()
def test_and_there_again_after_export(tmp_path, images):
    """Both folders, opened as each class; and back."""
    tokenizer = Tokenizer.learn(TEXTS)
    model = Vilt(
        tokenizer=tokenizer.json,
        image={"backbone": "vit", "image_size": 24, "patch_size": 8, "width": 16, "depth": 2, "heads": 2,
               "norm_eps": 1e-5, "mean": [0.5] * 3, "std": [0.25] * 3},
        text={"width": 16, "depth": 0, "heads": 2, "max_length": 12, "norm_eps": 1e-5},
        optimizer={},
    )  # fmt: skip
    spread(model)
    out = export(model, tmp_path / "out")
    batch = vilt_inputs(out / "mlm", images)
    tokens, mask = model._tokenize(TEXTS)
    assert torch.equal(tokens, batch["input_ids"])
    patches = model.image_tokens(images)
    words, _ = model.network(patches, tokens, mask)

    guesses = ViltForMaskedLM.from_pretrained(out / "mlm").eval()(**batch).logits
    close(model.network.text.logits(words)[mask], guesses[mask])
    score = ViltForImageAndTextRetrieval.from_pretrained(out / "retrieval").eval()(**batch).logits[:, 0]
    close(model.match(patches, TEXTS), score)
    for part in ("mlm", "retrieval"):
        pooled = ViltModel.from_pretrained(out / part).eval()(**batch, image_token_type_idx=2).pooler_output
        close(model.joint(images, TEXTS, place=1), pooled)

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    for part in ("mlm", "retrieval"):  # and what makes a picture of any size theirs
        seen = AutoProcessor.from_pretrained(out / part)(images=picture, text=TEXTS[0], return_tensors="pt")
        assert seen["pixel_values"].shape == (1, 3, 24, 24)

    again, rest = load(out)
    assert rest == []
    assert torch.equal(again._tokenize(TEXTS)[0], tokens)
    assert again.network.image.std.flatten().tolist() == [0.25] * 3
    close(again.match(patches, TEXTS), model.match(patches, TEXTS))
    for name, tensor in model.state_dict().items():
        if not name.startswith("matcher."):  # whose difference alone is kept
            torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)


@torch.no_grad()
def test_another_picture_size(folder, images):
    """Positions are interpolated; what is as large stays."""
    save(ViltModel, folder)
    arguments = read(folder, "Vilt").arguments
    model, _ = load(folder, image={**arguments["image"], "image_size": 32})
    assert model.image_tokens(torch.zeros(1, 3, 32, 32)).shape == (1, 17, 16)


def test_the_first_versions_name_the_bias_apart(folder):
    theirs = save(ViltForMaskedLM, folder)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["mlm_score.bias"] = state.pop("mlm_score.decoder.bias")
    state["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(12)[None]
    theirs.save_pretrained(folder, state_dict=state)
    model, rest = load(folder)
    assert rest == ["matcher.weight", "matcher.bias"]
    assert torch.equal(model.network.text.head_bias[:V], theirs.mlm_score.decoder.bias)


def test_what_does_not_fit_is_named(folder, tmp_path):
    save(ViltModel, folder)
    with pytest.raises(ValueError, match="no part of a Clip"):
        read(folder, "Clip")
    small = Vilt(
        tokenizer=Tokenizer.learn(TEXTS).json,
        image={"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2},
        text={"width": 16, "depth": 0, "heads": 2, "max_length": 12},
        optimizer={},
    )
    with pytest.raises(ValueError, match="no counterpart"):
        export(small, tmp_path / "out")
    with pytest.raises(ValueError, match=r"unknown: .*blocks\.1"):
        initialise(small, read(folder, "Vilt"))
