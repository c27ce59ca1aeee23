from collections.abc import Callable, Sequence

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.conftest import train
from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import load_model
from tldr.model.captioner import LOG_EVERY, NOISE_RATE_STEP, Captioner

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 230), "green": (20, 160, 50), "white": (240, 240, 240)}
CAPTIONS = [
    f"a {colour} box on the {side}{more}"
    for colour, more in zip(COLOURS, ("", ", and nothing else at all", "", ", or so it seems"), strict=True)
    for side in ("left", "right")
]
TOKENIZER = Tokenizer.learn(CAPTIONS).json
B = len(CAPTIONS)


def build(*, seed: int = 0, **options) -> Captioner:
    torch.manual_seed(seed)
    arguments = {
        "tokenizer": TOKENIZER,
        "image": {"backbone": "conv_stem", "image_size": 32, "width": 32, "depth": 1, "heads": 2},
        "text": {"width": 24, "depth": 1, "heads": 2, "max_length": 24, "pre_norm": True},
        "optimizer": {"lr": 5e-3, "schedule": "constant"},
    }
    return Captioner(**(arguments | options))


def make_batch(rows: Sequence[int] = range(B)) -> Batch:
    """A box of a colour on a side, and the sentence that says so."""
    images = torch.full((B, 3, 32, 32), 90, dtype=torch.uint8)
    for i, colour in enumerate(COLOURS.values()):
        images[2 * i, :, 6:26, 2:14] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
        images[2 * i + 1, :, 6:26, 18:30] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    images += torch.randint(0, 12, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows = list(rows)
    return Batch(
        images=images[rows],
        captions=[CAPTIONS[row] for row in rows],
        rows=torch.arange(len(rows)),
        image_ids=torch.tensor(rows),
        errors=[""] * len(rows),
        columns={},
    )


def fit(model: Captioner, steps: int, make: Callable[[int], Batch] | None = None, **options) -> L.Trainer:
    """Train on the same eight pairs again and again, or on what ``make`` gives."""
    model.prepare(CAPTIONS)
    return train(model.train(), steps, make or (lambda _: make_batch()), epoch=500, gradient_clip_val=1.0, **options)


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def trained() -> Captioner:
    """A VQ-VLM that has seen its eight pairs often enough."""
    model = build(quantizer={"codebook_size": 24, "after": 60})
    fit(model, 160)
    return model.eval()


def lm(model: Captioner, batch: Batch) -> float:
    """The LM loss with all pictures in sight."""
    with torch.inference_mode():
        image, *_ = model.eval().encode(batch["images"])
        tokens, mask = model._tokenize(batch["captions"])
        return float(model._nll(tokens, mask, image).sum() / mask[:, 1:].sum())


def alone(model: Captioner, image: Tensor, caption: str) -> float:
    """The negative log-likelihood of one caption, word by word, without pads, for (L, D) image tokens."""
    tokens, _ = model._tokenize([caption])
    logits = model.decoder.logits(model.decoder(tokens[:, :-1], image=image[None], causal=True))[0]
    return -sum(float(row.log_softmax(0)[word]) for row, word in zip(logits, tokens[0, 1:], strict=True))


# ------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("quantizer", [None, {"codebook_size": 16, "after": 5}], ids=["plain", "codebook"])
def test_twenty_steps_lower_the_loss(batch, quantizer):
    model = build(quantizer=quantizer)
    before = lm(model, batch)
    fit(model, 20)
    assert lm(model, batch) < before - 0.5


def test_the_right_caption_aligns_better(trained, batch):
    """Of all captions, that of its own picture; a well-formed wrong one is worse than no knowledge of the picture."""
    alignment = torch.stack(
        [trained.signals({**batch, "captions": CAPTIONS[i:] + CAPTIONS[:i]})["alignment"] for i in range(B)]
    )
    right, wrong = alignment[0], alignment[1:]
    assert right.mean() > wrong.mean() + 2
    assert (right > wrong.max(0).values).float().mean() >= 0.75
    assert right.mean() > 0 > wrong.mean()


def test_what_it_logs_says_whether_it_looks(trained):
    assert 60 < LOG_EVERY * (159 // LOG_EVERY) < 160  # it was asked when the codebook had begun
    metrics = trained.trainer.callback_metrics
    names = {"train/lm", "train/commitment", "train/lm_image", "train/lm_shuffled", "train/lm_null"}
    assert set(metrics) >= {"loss", *names, "codebook/perplexity", "codebook/used"}
    assert metrics["loss"] == pytest.approx(metrics["train/lm"] + metrics["train/commitment"])
    assert metrics["train/lm_image"] < metrics["train/lm_null"] < metrics["train/lm_shuffled"]
    assert 1 < metrics["codebook/perplexity"] <= 24
    assert 0 < metrics["codebook/used"] <= 1


def test_without_a_codebook_it_logs_none(batch):
    metrics = fit(build(), 2).callback_metrics
    assert not any("codebook" in name or "commitment" in name for name in metrics)
    assert "train/lm_shuffled" in metrics


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_null_image_stands_for_its_share_of_the_pictures(batch, share):
    model = build(null_share=share).train()
    model.trainer = fit(build(), 1)
    model.losses(batch)["lm"].backward()
    assert model.null.grad is not None
    assert bool(model.null.grad.any()) == (share == 1)
    pictures = [p.grad is not None and bool(p.grad.any()) for p in model.image_encoder.parameters()]
    assert any(pictures) == (share == 0)


def noisy(number: int) -> Batch:
    """Three of the eight captions are drawn from those of other pictures."""
    generator = torch.Generator().manual_seed(number)
    batch = make_batch()
    for row in torch.randperm(B, generator=generator)[:3].tolist():
        other = int(torch.randint(1, B, (), generator=generator))
        batch["captions"][row] = CAPTIONS[(row + other) % B]
    return batch


def test_it_learns_how_many_captions_are_wrong(batch):
    """And believes those less: wrong captions leave no more mark than they would in clean data."""
    doubting, believing = build(noise_rate=0.6, init_std=0.2), build(init_std=0.2)
    for model in (doubting, believing):
        fit(model, 200, noisy)
        model.eval()
    assert doubting.noise is not None
    assert float(doubting.noise) == pytest.approx(3 / 8, abs=0.08)
    swapped = Batch(**{**batch, "captions": CAPTIONS[1:] + CAPTIONS[:1]})
    right, wrong = (
        [float(model.signals(each)["alignment"].mean()) for model in (doubting, believing)] for each in (batch, swapped)
    )
    assert right[0] > right[1]
    assert wrong[0] < wrong[1] - 1


def test_a_caption_weighs_the_posterior_that_it_belongs(batch):
    model = build(noise_rate=0.3, null_share=1e-9, init_std=0.2)
    model.trainer = fit(build(), 1)
    model.eval()
    with torch.no_grad():
        image = model.encode(batch["images"])[0]
        tokens, mask = model._tokenize(batch["captions"])
        nll, prior = model._nll(tokens, mask, image), model._nll(tokens, mask, model.null.expand_as(image))
        likely, anywhere = 0.7 * (-nll).exp(), 0.3 * (-prior).exp()
        trust, words = likely / (likely + anywhere), model._words(mask).sum(1)
        found = model.losses(batch)["lm"]
    assert trust.std() > 1e-3
    assert float(found) == pytest.approx(float((trust * nll).sum() / (trust * words).sum()), rel=1e-4)
    assert model.noise is not None
    assert float(model.noise) == pytest.approx(0.3 + NOISE_RATE_STEP * (float(1 - trust.mean()) - 0.3), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"noise_rate": 1.0}, "noise_rate=1.0"), ({"noise_rate": 0.3, "null_share": 0.0}, "null_share")],
)
def test_a_noise_rate_is_a_share_and_wants_null_pictures(options, named):
    with pytest.raises(ValueError, match=named):
        build(**options)


def test_all_that_learns_gets_a_gradient(batch):
    """Else distributed training would need find_unused_parameters; before and after the codebook begins."""
    model = build(quantizer={"codebook_size": 8, "after": 1})
    for steps in (2, 3):
        model.trainer = fit(model, steps)
        model.zero_grad()
        torch.stack(list(model.train().losses(batch).values())).sum().backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_loss_is_per_word_and_smoothed(batch):
    model = build(null_share=0.0, label_smoothing=0.2).train()
    model.trainer = fit(build(), 1)
    model.eval()
    loss = float(model.losses(batch)["lm"].detach())
    with torch.no_grad():
        image, *_ = model.encode(batch["images"])
        total, words = 0.0, 0
        for i, caption in enumerate(CAPTIONS):
            tokens, _ = model._tokenize([caption])
            logits = model.decoder.logits(model.decoder(tokens[:, :-1], image=image[i : i + 1], causal=True))[0]
            total += float(F.cross_entropy(logits, tokens[0, 1:], label_smoothing=0.2, reduction="sum"))
            words += tokens.shape[1] - 1
    assert loss == pytest.approx(total / words, rel=1e-5)


def test_bfloat16_autocast(batch):
    model = build(quantizer={"codebook_size": 16, "after": 2})
    fit(model, 4, precision="bf16-mixed")
    assert model.quantizer is not None
    assert model.quantizer.active
    assert model.quantizer.codebook.dtype == torch.float32
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.eval().signals(batch).values())


# ------------------------------------------------------------------------------------------------ the codebook


def test_the_codebook_begins_from_keywords_in_their_embeddings():
    model = build(quantizer={"codebook_size": 6, "after": 2})
    model.prepare(CAPTIONS)
    assert model.keywords[:2] == ["box", "left"]
    words = model._keyword_embeddings()
    assert words.shape == (6, 32)  # the width of the image tokens, not the text's
    assert torch.equal(words, model._keyword_embeddings())
    same = build(text={"width": 32, "depth": 1, "heads": 2, "max_length": 24}, quantizer={"codebook_size": 6})
    same.prepare(["left left right"])
    tokens = same.tokenizer(["left"], max_length=9)[0][0, 1:-1]
    torch.testing.assert_close(same._keyword_embeddings()[0], same.decoder.words(tokens).mean(0))
    other = build(quantizer={"codebook_size": 6, "init": "kmeans"})
    other.prepare(CAPTIONS)
    assert other.keywords == []


def test_a_run_that_ends_before_the_codebook_begins_is_refused():
    """All its codes would be 0."""
    for after in (5, 100):
        message = rf"joins after {after} steps, but training ends after 5: lower .*\.after.* training\.max_steps"
        with pytest.raises(ValueError, match=message):
            fit(build(quantizer={"codebook_size": 8, "after": after}), 5)
    model = build(quantizer={"codebook_size": 8, "after": 4})
    fit(model, 5)
    assert model.quantizer is not None
    assert model.quantizer.active
    fit(model, 1)  # a second run goes on with it


def test_the_codebook_begins_in_training_alone(batch):
    model = build(quantizer={"codebook_size": 8, "init": "random"})
    model.eval().signals(batch)
    assert model.quantizer is not None
    assert not model.quantizer.active
    model.train().encode(batch["images"])
    assert model.quantizer.active


def test_codes_come_with_a_codebook_only(trained, batch):
    signals, plain = trained.signals(batch), build().eval()
    assert set(signals) == {"codes", "embedding", "alignment", "tokens"}
    assert set(plain.signals(batch)) == {"embedding", "alignment", "tokens"}
    assert plain.constants() == {}
    codebook, codes = trained.constants()["codebook"], signals["codes"]
    assert codebook.shape == (24, 32)
    assert codes.shape == (B, 4)
    assert len(codes.unique()) > 3
    torch.testing.assert_close(signals["embedding"], codebook[codes].mean(1))


def test_the_decoder_reads_nothing_but_the_codes(trained, batch):
    image, codes, _ = trained.encode(batch["images"])
    assert codes is not None
    torch.testing.assert_close(image, trained.constants()["codebook"][codes])


# ------------------------------------------------------------------------------------------------ signals


@torch.inference_mode()
def test_texts_of_like_length_decoded_together_cost_the_same(trained, batch):
    image, *_ = trained.encode(batch["images"])
    for rows in (range(B), [3], [0, 7], [5, 1, 2, 6, 0], [4] * 9):
        tokens, mask = trained._tokenize([CAPTIONS[row] for row in rows])
        expected = torch.tensor([alone(trained, image[row], CAPTIONS[row]) for row in rows])
        torch.testing.assert_close(trained._nll(tokens, mask, image[list(rows)]), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_alignment_is_what_the_picture_adds(trained, batch):
    image, *_ = trained.encode(batch["images"])
    null = trained.null[0].expand_as(image[0])
    expected = [alone(trained, null, text) - alone(trained, image[i], text) for i, text in enumerate(CAPTIONS)]
    signals = trained.signals(batch)
    assert signals["alignment"].tolist() == pytest.approx(expected, abs=1e-3)
    assert signals["tokens"].tolist() == [trained._tokenize([text])[0].shape[1] - 1 for text in CAPTIONS]


def test_a_pair_is_judged_alike_in_any_company(trained, batch):
    whole = trained.signals(batch)
    for rows in ([2], [7, 0, 3], [6, 5, 4, 3, 2, 1]):
        part = trained.signals(make_batch(rows))
        for name, values in part.items():
            torch.testing.assert_close(values, whole[name][rows], rtol=1e-4, atol=1e-4)
    again = trained.signals(batch)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_caption_longer_than_the_decoder_is_cut(trained, batch):
    signals = trained.signals({**batch, "captions": ["a red box " * 1000] * B})
    assert signals["tokens"].tolist() == [23] * B
    assert signals["alignment"].isfinite().all()


# ------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_it_says_what_it_sees(trained, batch, strategy):
    told = trained.generate(batch["images"], strategy=strategy, max_length=20)
    assert sum(a == b for a, b in zip(told, CAPTIONS, strict=True)) >= 6


def test_draws_depend_on_the_generator_alone(trained, batch):
    def draw(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return trained.generate(batch["images"], strategy="nucleus", top_p=1.0, max_length=20, generator=generator)

    first = draw(0)
    torch.randn(3)
    assert draw(0) == first
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1
    assert not any("[" in text for text in draw(0))


def test_a_checkpoint_gives_the_same_model(trained, batch, tmp_path):
    trained.trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = load_model(tmp_path)
    assert isinstance(again, Captioner)
    assert again.quantizer is not None
    assert again.quantizer.active
    signals, expected = again.signals(batch), trained.signals(batch)
    assert all(torch.equal(signals[name], expected[name]) for name in expected)
    options = {"strategy": "greedy", "max_length": 20}
    assert again.generate(batch["images"], **options) == trained.generate(batch["images"], **options)


# ------------------------------------------------------------------------------------------------ fine-tuning


@torch.no_grad()
def test_the_prompt_is_read_and_not_judged(batch):
    model = build(
        prompt="nothing else ", text={"width": 24, "depth": 1, "heads": 2, "max_length": 40, "pre_norm": True}
    ).eval()
    prompt, image = model._tokenize([""])[0][0, 1:-1].tolist(), model.encode(batch["images"])[0]
    assert len(prompt) >= 2
    expected = []
    for i, caption in enumerate(CAPTIONS):
        text = model._tokenize([caption], "")[0][0, 1:]
        tokens = torch.tensor([[model.tokenizer.dec, *prompt, *text.tolist()]])
        logits = model.decoder.logits(model.decoder(tokens[:, :-1], image=image[i : i + 1], causal=True))[0]
        expected.append(float(F.cross_entropy(logits[len(prompt) :], text, reduction="sum")))
    tokens, mask = model._tokenize(CAPTIONS)
    torch.testing.assert_close(model._nll(tokens, mask, image), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    signals = model.signals(batch)
    assert torch.equal(signals["tokens"], build().signals(batch)["tokens"])


def test_captions_follow_the_prompt_and_leave_it_out(batch):
    model = build(
        prompt="nothing else ", text={"width": 24, "depth": 1, "heads": 2, "max_length": 40, "pre_norm": True}
    )
    fit(model, 160)
    options = {"strategy": "greedy", "max_length": 20}
    told = model.eval().generate(batch["images"], **options)
    assert sum(a == b for a, b in zip(told, CAPTIONS, strict=True)) >= 6
    assert told == model.generate(batch["images"], prompt="nothing else", **options)
    begun = model.generate(batch["images"], prompt="nothing else a", **options)
    assert sum(f"a {a}" == b for a, b in zip(begun, CAPTIONS, strict=True)) >= 6


def test_fine_tuning_keeps_the_null_image_and_goes_on_with_the_codebook(trained, batch):
    """A new run on other captions: the codes are not drawn anew, and `after` means nothing to a codebook that is on."""
    model = build(quantizer={"codebook_size": 24, "after": 60}, prompt="nothing else", null_share=0.0)
    model.load_state_dict(trained.state_dict())
    codes = trained.signals(batch)["codes"]
    fit(model, 3)
    assert model.quantizer is not None
    assert model.quantizer.active
    torch.testing.assert_close(model.null, trained.null, rtol=1e-2, atol=1e-3)  # no row was blind: weight decay alone
    moved = (model.constants()["codebook"] - trained.constants()["codebook"]).norm(dim=1)
    apart = torch.cdist(trained.constants()["codebook"], trained.constants()["codebook"])
    assert float(moved[codes.unique()].median()) < float(apart[apart > 0].median()) / 2


@torch.no_grad()
def test_the_joint_feature_is_the_state_at_the_end_of_the_text_and_how_it_fits(trained, batch):
    joint = trained.joint(batch["images"], CAPTIONS)
    assert joint.shape == (B, trained.joint_width) == (B, 48)
    for i, caption in enumerate(CAPTIONS):  # alone, and so without pads
        tokens, _ = trained._tokenize([caption])
        image = trained.encode(batch["images"][i : i + 1])[0]
        seen, blind = (
            trained.decoder(tokens, image=view, causal=True)[0] for view in (image, trained.null.expand_as(image))
        )
        torch.testing.assert_close(joint[i, :24], seen[-1], rtol=1e-4, atol=1e-4)
        fit = torch.zeros(24)
        for state, before, word in zip(seen, blind, tokens[0, 1:], strict=False):
            embedding = trained.decoder.words.weight[word]
            embedding = (embedding - embedding.mean()) / embedding.std(correction=0)
            fit += (trained.decoder.head(state) - trained.decoder.head(before)) * embedding / (len(seen) - 1) ** 0.5
        torch.testing.assert_close(joint[i, 24:], fit, rtol=1e-3, atol=1e-3)
    other = trained.joint(batch["images"].roll(1, 0), CAPTIONS)
    assert not torch.allclose(other[:, :24], joint[:, :24], atol=1e-2)
    assert not torch.allclose(other[:, 24:], joint[:, 24:], atol=1e-2)
    assert torch.equal(
        build(prompt="nothing").joint(batch["images"], CAPTIONS), build().joint(batch["images"], CAPTIONS)
    )
