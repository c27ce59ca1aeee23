import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from tests.model.conftest import save, train
from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model import vilt
from tldr.model.base import build as build_described
from tldr.model.base import describe, load_model
from tldr.model.vilt import Vilt
from tldr.nn.transport import transport_distance

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("disc", "star on the left")]
TOKENIZER = Tokenizer.learn(CAPTIONS).json
B, D = 6, 32


def build(*, seed: int = 0, **options) -> Vilt:
    torch.manual_seed(seed)
    arguments = {
        "tokenizer": TOKENIZER,
        "image": {"backbone": "conv_stem", "image_size": 32, "width": D, "depth": 2, "heads": 4},
        "text": {"width": D, "depth": 0, "heads": 4, "max_length": 14},
        "optimizer": {"lr": 5e-3, "warmup_steps": 5},
    }
    return Vilt(**(arguments | options))


def make_batch(captions=CAPTIONS, ids=None, seed: int = 0) -> Batch:
    """Each picture has four fields of a colour."""
    generator = torch.Generator().manual_seed(seed)
    n = len(captions)
    fields = torch.randint(0, 256, (n, 3, 2, 2), generator=generator, dtype=torch.uint8)
    return Batch(
        images=fields.repeat_interleave(16, 2).repeat_interleave(16, 3),
        captions=list(captions),
        rows=torch.arange(n),
        image_ids=torch.arange(n) if ids is None else torch.tensor(ids),
        errors=[""] * n,
        columns={},
    )


def plain_batch(times: int = 1) -> Batch:
    """Three pictures of one colour, as their captions say, some ``times`` each."""
    colours = torch.tensor([[255, 0, 0], [0, 0, 255], [0, 255, 0]], dtype=torch.uint8)
    batch = make_batch(["a red disc", "blue on the left", "green star"] * times, [0, 1, 2] * times)
    return Batch(**{**batch, "images": colours[:, :, None, None].repeat(times, 1, 32, 32)})


def fit(model: Vilt, *, steps: int, batch: Batch | None = None, **options) -> L.Trainer:
    """Train on the same batch again and again."""
    return train(model, steps, lambda _: batch or make_batch(), epoch=2, **options)


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def trained():
    """It knows the pairs of `plain_batch` by heart."""
    model = build(wpa=1.0, masked=0.4, optimizer={"lr": 3e-3, "warmup_steps": 5})
    fit(model, steps=100, batch=plain_batch(times=4))
    return model.eval()


# ------------------------------------------------------------------------------------------------ the losses


@torch.no_grad()
def test_losses_are_the_papers_formulas(monkeypatch, batch):
    """Written out pair by pair: MLM with the right pictures, ITM and the transport with those that it drew."""
    chosen = torch.zeros(B, 9, dtype=torch.bool)
    chosen[:, 2], chosen[1, 4:6] = True, True
    source, matched = torch.tensor([1, 1, 2, 0, 4, 5]), torch.tensor([0, 1, 1, 0, 1, 1]).bool()
    model = build().eval()
    tokens, mask = model._tokenize(batch["captions"])
    chosen = chosen[:, : tokens.shape[1]]
    monkeypatch.setattr(vilt, "choose_words", lambda numbers, share, whole: chosen)
    monkeypatch.setattr(vilt, "corrupt", lambda t, c, mask_token, vocabulary: torch.where(c, mask_token, t))
    monkeypatch.setattr(vilt, "swap_pictures", lambda positive, share: (source, matched))
    losses = model.losses(batch)

    patches, nll, itm, moved = model.image_tokens(batch["images"]), [], [], []
    for i in range(B):
        text, real = tokens[i : i + 1], mask[i : i + 1]
        read = text.masked_fill(chosen[i : i + 1], model.tokenizer.mask)
        words, _ = model.network(patches[i : i + 1], read, real)
        log_p = model.network.text.logits(words[0]).log_softmax(1)
        nll += [-float(log_p[place, text[0, place]]) for place in chosen[i].nonzero().flatten()]
        words, seen = model.network(patches[source[i] : source[i] + 1], text, real)
        scores = model.matcher(torch.tanh(model.network.pooler(words[0, 0])))
        itm.append(-float(scores.log_softmax(0)[int(matched[i])]))
        inner = int(real.sum()) - 1  # the words between [CLS] and [SEP]
        every = torch.ones(1, seen.shape[1], dtype=torch.bool)
        distance = transport_distance(words[:, 1:inner], seen, every[:, :1].expand(1, inner - 1), every)
        moved.append(float(distance) if matched[i] else -float(distance))
    assert float(losses["mlm"]) == pytest.approx(sum(nll) / len(nll), rel=1e-5)
    assert float(losses["itm"]) == pytest.approx(sum(itm) / B, rel=1e-5)
    assert float(losses["wpa"]) == pytest.approx(0.1 * sum(moved) / B, rel=1e-4)


@torch.no_grad()
def test_ranking_is_the_papers_formula(monkeypatch, batch):
    """Written out picture by picture: the likelihood of its own caption among itself and those that were drawn."""
    others = torch.tensor([[1, 3], [0, 5], [4, 1], [2, 0], [3, 5], [1, 2]])
    model = build(ranked=2).eval()
    monkeypatch.setattr(vilt, "draw_others", lambda positive, count: (others[:, :count], others[:, :count] >= 0))
    losses, patches, nll = model.losses(batch), model.image_tokens(batch["images"]), []
    for i, drawn in enumerate(others.tolist()):
        captions = [batch["captions"][j] for j in (i, *drawn)]
        nll.append(-float(model.match(patches[i : i + 1].expand(3, -1, -1), captions).log_softmax(0)[0]))
    assert list(losses) == ["ranking"]
    assert float(losses["ranking"]) == pytest.approx(sum(nll) / B, rel=1e-5)


def test_ranking_finds_the_caption_of_every_picture():
    """And what belongs together after all, the same picture or the same words, is not told apart."""
    model = build(ranked=15, optimizer={"lr": 3e-3, "warmup_steps": 5})
    fit(model, steps=60, batch=plain_batch(times=4))
    batch = plain_batch()
    with torch.no_grad():
        tokens = model.eval().image_tokens(batch["images"])
        odds = torch.stack([model.match(tokens, [caption] * 3) for caption in batch["captions"]], 1)
    assert torch.equal(odds.argmax(1), torch.arange(3))


@torch.no_grad()
def test_a_picture_without_captions_of_others_leaves_the_rest_to_learn():
    """The first shows what the third does and says what the second does, who are told from each other alone."""
    said = ["a red disc", "a red disc", "blue star on the left"]
    model, batch = build(ranked=15).eval(), make_batch(said, ids=[7, 1, 7])
    patches, nll = model.image_tokens(batch["images"]), []
    for own, other in ((1, 2), (2, 1)):
        odds = model.match(patches[own : own + 1].expand(2, -1, -1), [said[own], said[other]])
        nll.append(-float(odds.log_softmax(0)[0]))
    assert float(model.losses(batch)["ranking"]) == pytest.approx(sum(nll) / 2, rel=1e-5)


def test_a_batch_without_captions_of_others_is_refused():
    with pytest.raises(ValueError, match=r"model\.ranked=15: no picture of this batch of 4 .* raise batch_size"):
        build(ranked=15).losses(make_batch(["a red disc"] * 4))


@torch.no_grad()
def test_a_random_start_costs_what_chance_does(batch):
    losses = build().train().losses(batch)
    assert float(losses["mlm"]) == pytest.approx(math.log(len(Tokenizer(TOKENIZER))), abs=0.4)
    assert float(losses["itm"]) == pytest.approx(math.log(2), abs=0.3)


def test_twenty_steps_lower_every_loss(batch):
    def measure(model):
        with torch.no_grad():
            torch.manual_seed(1)  # words and pictures are drawn
            return torch.stack([torch.stack(list(model.eval().losses(batch).values())) for _ in range(10)]).mean(0)

    model = build(wpa=1.0)
    before = measure(model)
    fit(model.train(), steps=20)
    after = measure(model)
    assert (after < before - torch.tensor([1.0, 0.003, 0.01])).all(), (before, after)


def test_all_that_learns_gets_a_gradient(batch):
    """Else distributed training would need find_unused_parameters."""
    for model in (build(wpa=0.0), build(wpa=0.1), build(ranked=2)):
        model.train()
        torch.stack(list(model.losses(batch).values())).sum().backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_pairs_that_belong_together_are_not_swapped(monkeypatch):
    seen = []
    monkeypatch.setattr(
        vilt,
        "swap_pictures",
        lambda positive, share: seen.append((positive, share)) or (torch.arange(4), torch.ones(4).bool()),
    )
    captions = ["a red disc", "a red disc", "a blue star", "a green star"]  # 0 and 1 say the same
    build(swapped=0.3).train().losses(make_batch(captions, ids=[4, 5, 6, 6]))  # 2 and 3 show the same
    positive, share = seen[0]
    assert torch.equal(positive, torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool())
    assert share == 0.3


def test_special_tokens_are_no_words(monkeypatch, batch):
    """None is guessed, none is put in a word's place."""
    model, chosen = build(masked=1.0), []
    real = vilt.choose_words
    monkeypatch.setattr(
        vilt, "choose_words", lambda *args, **options: chosen.append(real(*args, **options)) or chosen[-1]
    )
    model.losses(batch)
    tokens, mask = model._tokenize(batch["captions"])
    assert torch.equal(chosen[0], mask & (tokens != model.tokenizer.cls) & (tokens != model.tokenizer.sep))
    special = {getattr(model.tokenizer, name) for name in ("pad", "unk", "cls", "sep", "mask", "enc", "dec")}
    assert sorted({*model.vocabulary.tolist(), *special}) == list(range(len(model.tokenizer)))
    assert not special & set(model.vocabulary.tolist())


def test_a_batch_without_words_teaches_no_words():
    with torch.no_grad():
        losses = build().train().losses(make_batch(["", ""]))
    assert float(losses["mlm"]) == float(losses["wpa"]) == 0


def test_one_pair_is_no_batch():
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        build().losses(make_batch(CAPTIONS[:1]))
    with pytest.raises(ValueError, match="swapped=1"):
        build(swapped=1)
    with pytest.raises(ValueError, match="ranked=-1"):
        build(ranked=-1)


def test_bfloat16_autocast_trains():
    model = build()
    fit(model, steps=2, precision="bf16-mixed")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------------ what it is asked for


@torch.no_grad()
def test_it_learns_three_pairs_by_heart(trained):
    """It tells the right pictures from the wrong, and which colour hides in the caption."""
    batch = plain_batch()
    tokens, captions = trained.image_tokens(batch["images"]), batch["captions"]
    odds = torch.stack([trained.match(tokens, [caption] * 3) for caption in captions])
    assert torch.equal(odds > 0, torch.eye(3, dtype=torch.bool))
    texts, mask = trained._tokenize(captions)
    hidden = trained.tokenizer.words(captions, max_length=14) == torch.tensor([[1], [0], [0]])
    words, _ = trained.network(tokens, texts.masked_fill(hidden, trained.tokenizer.mask), mask)
    assert torch.equal(trained.network.text.logits(words[hidden]).argmax(1), texts[hidden])


@torch.no_grad()
def test_signals_are_what_the_methods_give(trained):
    batch = plain_batch()
    signals = trained.signals(batch)
    odds = trained.match(trained.image_tokens(batch["images"]), batch["captions"])
    torch.testing.assert_close(signals["alignment"], odds)
    torch.testing.assert_close(signals["embedding"].norm(dim=1), torch.ones(3))
    other = trained.signals(Batch(**{**batch, "captions": batch["captions"][1:] + batch["captions"][:1]}))
    torch.testing.assert_close(other["embedding"], signals["embedding"])  # the picture's own, whatever is said of it
    assert (other["alignment"] < signals["alignment"]).all()


def test_joint_features_are_what_matching_judges(trained, batch):
    joint = trained.joint(batch["images"], batch["captions"])
    assert joint.shape == (B, trained.joint_width)
    assert joint.requires_grad
    scores = trained.matcher(joint)
    odds = trained.match(trained.image_tokens(batch["images"]), batch["captions"])
    torch.testing.assert_close(scores[:, 1] - scores[:, 0], odds)
    torch.testing.assert_close(trained.joint(batch["images"], batch["captions"], place=1), joint)  # until NLVR2
    with torch.no_grad():
        trained.network.types[2].normal_()
        assert not torch.allclose(trained.joint(batch["images"], batch["captions"], place=1), joint)
        trained.network.types[2].zero_()


@torch.no_grad()
def test_a_checkpoint_gives_the_same_model(trained, batch, tmp_path):
    trained.trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = load_model(tmp_path)
    assert isinstance(again, Vilt)
    for name, expected in trained.signals(batch).items():
        assert torch.equal(again.signals(batch)[name], expected)
    described = build_described(describe(trained))
    assert [*described.state_dict()] == [*trained.state_dict()]


@torch.no_grad()
def test_words_are_as_wide_as_the_blocks_that_read_them(batch, tmp_path):
    """Unless another width is asked for, which is refused."""
    model = build(text={"width": None, "depth": 0, "heads": None, "max_length": 14}).eval()
    assert model.network.text.width == D
    torch.testing.assert_close(dict(model.state_dict()), dict(build().state_dict()))
    again = load_model(save(model, tmp_path))
    assert isinstance(again, Vilt)
    torch.testing.assert_close(again.signals(batch), model.signals(batch), rtol=0, atol=0)
    with pytest.raises(ValueError, match=rf"text\.width=8 must be the image's, {D}, or null"):
        build(text={"width": 8, "depth": 0, "heads": 4, "max_length": 14})


@torch.no_grad()
def test_any_timm_vision_transformer_will_do():
    """As published: ViT's blocks, a class token, patches projected linearly."""
    model = build(
        image={"backbone": "vit_tiny_patch16_224", "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        text={"width": 192, "depth": 0, "heads": 3, "max_length": 14},
    )
    batch = make_batch()
    assert model.image_tokens(batch["images"]).shape == (B, 5, 192)
    losses = model.losses(batch)
    assert all(loss.isfinite() for loss in losses.values())
    expected = F.normalize(
        model.network.image.patches(
            model.network(model.image_tokens(batch["images"]), *model._tokenize([""] * B))[1]
        ).mean(1),
        dim=1,
    )
    torch.testing.assert_close(model.signals(batch)["embedding"], expected)
