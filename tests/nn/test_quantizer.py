from typing import Any

import pytest
import torch
from torch import Tensor

from tldr.nn.quantizer import INITS, Quantizer

D, K = 8, 32


def draw(seed: int, count: int = 16, *, spread: float = 0.1) -> Tensor:
    """(count, 12, D) tokens around 20 centres that have a mean and a scale of their own."""
    centres = 3 + 2 * torch.randn(20, D, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(20, (count, 12), generator=generator)
    return centres[label] + spread * torch.randn(count, 12, D, generator=generator)


def keyword_embeddings(count: int = 40) -> Tensor:
    return 0.02 * torch.randn(count, D, generator=torch.Generator().manual_seed(5)) - 0.1


def build(init: str = "keywords", *, keywords: Tensor | None = None, **options) -> Quantizer:
    """A quantizer that has begun, in training mode."""
    torch.manual_seed(0)
    quantizer = Quantizer(D, codebook_size=K, init=init, **options).train()
    assert quantizer.observe(draw(0), 0)
    quantizer.initialise((keyword_embeddings() if keywords is None else keywords) if init == "keywords" else None)
    return quantizer


@pytest.mark.parametrize("init", INITS)
def test_every_token_becomes_its_nearest_code(init):
    quantizer, tokens = build(init).eval(), draw(1)
    assert quantizer.active
    quantised, codes, loss = quantizer(tokens)
    assert quantizer.codebook.shape == (K, D)
    assert torch.equal(codes, torch.cdist(tokens, quantizer.codebook[None]).argmin(2))
    torch.testing.assert_close(quantised, quantizer.codebook[codes])
    assert loss == 0  # nothing is learned in evaluation


@pytest.mark.parametrize("init", INITS)
def test_the_first_step_does_not_undo_the_start(init):
    """The trap of a moving average whose sums are still those of the random codes (docs/methods.md E)."""
    quantizer = build(init, decay=0.99, dead_below=0)
    before = quantizer.codebook.clone()
    _, codes, _ = quantizer(draw(0))
    change = (quantizer.codebook - before).norm(dim=1) / before.norm(dim=1)
    assert change.median() < 0.05
    idle = torch.bincount(codes.flatten(), minlength=K) == 0
    assert change[idle].numel() == 0 or change[idle].max() < 1e-3


def test_codes_follow_their_tokens():
    quantizer = build("random", decay=0.8)
    losses = [quantizer(draw(seed))[2].detach() for seed in range(40)]
    assert losses[-1] < 0.9 * losses[0]
    tokens = draw(100)
    assert float((quantizer.eval()(tokens)[0] - tokens).square().mean()) < 0.02  # their spread is 0.1


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_commitment_is_the_squared_distance_to_the_code(weight):
    quantizer, tokens = build(commitment=weight), draw(1)
    before = quantizer.codebook.clone()
    _, codes, loss = quantizer(tokens)
    torch.testing.assert_close(loss.detach(), weight * (tokens - before[codes]).square().mean())


def test_before_it_begins_tokens_pass():
    quantizer = Quantizer(D, codebook_size=K, after=5).train()
    tokens = draw(0).requires_grad_()
    passed, codes, loss = quantizer(tokens)
    assert torch.equal(passed, tokens)
    assert codes.shape == tokens.shape[:2]
    assert loss == 0
    assert not quantizer.active


def test_it_begins_when_its_time_has_come_with_what_it_saw_last():
    """Tokens of the first steps come from an encoder that has learned nothing."""
    quantizer = Quantizer(D, codebook_size=K, init="random", after=30).train()
    for step in range(30):
        assert not quantizer.observe(draw(step) + 1000 * (step < 20), step)
    assert quantizer.observe(draw(30), 30)
    quantizer.initialise()
    assert quantizer.active
    assert not quantizer.observe(draw(31), 31)
    assert quantizer.codebook.abs().max() < 50
    # The codes are tokens of several batches, not of the last alone.
    seen = torch.stack([draw(step).flatten(0, 1) for step in range(20, 31)])  # (steps, tokens, D)
    nearest = torch.cdist(quantizer.codebook, seen.flatten(0, 1)).argmin(1) // seen.shape[1]
    assert len(nearest.unique()) > 4


@pytest.mark.parametrize("rotation_trick", [True, False])
def test_the_gradient_reaches_the_tokens(rotation_trick):
    quantizer = build(rotation_trick=rotation_trick, dead_below=0)
    tokens, weight = draw(1).requires_grad_(), torch.randn(D, generator=torch.Generator().manual_seed(1))
    quantised, codes, _ = quantizer(tokens)
    (quantised @ weight).sum().backward()
    assert tokens.grad is not None
    if rotation_trick:  # the gradient is turned and scaled as the token is on its way to the code
        scale = quantised.detach().norm(dim=2) / tokens.detach().norm(dim=2)
        torch.testing.assert_close(tokens.grad.norm(dim=2), scale * weight.norm(), rtol=1e-3, atol=1e-3)
        along = (tokens.grad * tokens.detach()).sum(2)  # <R'w, z> = <w, Rz> = <w, q>
        torch.testing.assert_close(along, quantised.detach() @ weight, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(tokens.grad, weight.expand_as(tokens))
    assert codes.dtype == torch.int64


def test_dead_codes_are_revived():
    def used(dead_below: int) -> float:
        quantizer = build(dead_below=dead_below, keywords=keyword_embeddings(K))
        book: Any = quantizer.vq._codebook
        with torch.no_grad():  # nowhere near a token
            quantizer.vq.codebook = torch.cat([quantizer.codebook[:4], 1000 + quantizer.codebook[4:]])
            book.embed_avg.copy_(book.embed)
        for seed in range(30):
            quantizer(draw(seed))
        _, codes, _ = quantizer.eval()(draw(100, 64))
        return float(quantizer.usage(codes)["used"])

    assert used(0) <= 4 / K
    assert used(1) > 0.5


def test_evaluation_changes_nothing():
    quantizer, tokens = build().eval(), draw(1)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    one, two = quantizer(tokens), quantizer(tokens)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    alone = quantizer(tokens[3:4])
    assert torch.equal(alone[1], one[1][3:4])
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_checkpoint_remembers_that_it_has_begun():
    trained, fresh = build().eval(), Quantizer(D, codebook_size=K, after=100).eval()
    trained.train()(draw(1))
    fresh.load_state_dict(trained.eval().state_dict())
    assert fresh.active
    assert not fresh.observe(draw(0), 100)
    assert all(torch.equal(a, b) for a, b in zip(fresh(draw(2)), trained(draw(2)), strict=True))
    early = Quantizer(D, codebook_size=K)
    early.load_state_dict(Quantizer(D, codebook_size=K).state_dict())
    assert not early.active


def test_keywords_are_moved_to_where_the_tokens_are():
    tokens, words = draw(0).flatten(0, 1), keyword_embeddings(K)
    codebook = build(keywords=words).codebook
    torch.testing.assert_close(codebook.mean(0), tokens.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codebook.std(0), tokens.std(0), rtol=0.05, atol=0)
    # A shift and a scale: words that are neighbours stay so.
    expected = (words - words.mean(0)) / words.std(0)
    torch.testing.assert_close((codebook - codebook.mean(0)) / codebook.std(0), expected, rtol=1e-3, atol=1e-3)


def test_the_first_keywords_get_the_codes_and_tokens_the_rest():
    many, few = build(keywords=keyword_embeddings(50)), build(keywords=keyword_embeddings(10))
    assert many.codebook.shape == few.codebook.shape == (K, D)
    tokens = draw(0).flatten(0, 1)
    to_tokens = torch.cdist(few.codebook, tokens).min(1).values
    assert (to_tokens[10:] < 0.1).all()
    assert (to_tokens[:10] > 0.1).any()
    assert len(few.codebook[10:].unique(dim=0)) == K - 10


def test_one_keyword_is_enough():
    quantizer = build(keywords=keyword_embeddings(1))
    assert quantizer.codebook.isfinite().all()
    torch.testing.assert_close(quantizer.codebook[0], draw(0).flatten(0, 1).mean(0))


def test_kmeans_finds_the_centres():
    codebook = build("kmeans").codebook
    centres = 3 + 2 * torch.randn(20, D, generator=torch.Generator().manual_seed(99))
    assert float(torch.cdist(centres, codebook).min(1).values.median()) < 0.2


def test_kmeans_of_fewer_tokens_than_codes():
    quantizer = Quantizer(D, codebook_size=K, init="kmeans").train()
    quantizer.observe(draw(0)[:1], 0)
    quantizer.initialise()
    assert len(quantizer.codebook.unique(dim=0)) == K


def test_usage():
    quantizer = Quantizer(D, codebook_size=K)
    uniform, one = quantizer.usage(torch.arange(K).repeat(3, 2)), quantizer.usage(torch.full((4, 5), 7))
    assert [float(uniform["perplexity"]), float(uniform["used"])] == pytest.approx([K, 1])
    assert [float(one["perplexity"]), float(one["used"])] == pytest.approx([1, 1 / K])
    two = quantizer.usage(torch.tensor([3, 3, 3, 9]))
    assert float(two["perplexity"]) == pytest.approx(4 / 27**0.25, rel=1e-4)  # exp of the entropy of 3/4 and 1/4


def test_errors_name_the_option():
    with pytest.raises(ValueError, match=r"quantizer\.init='codebook'; choose from keywords, kmeans, random"):
        Quantizer(D, codebook_size=K, init="codebook")
    for size in (1, 65_537):
        with pytest.raises(ValueError, match=rf"quantizer\.codebook_size={size}; .* uint16"):
            Quantizer(D, codebook_size=size)
    quantizer = Quantizer(D, codebook_size=K)
    for words in (None, torch.zeros(0, D)):
        quantizer.observe(draw(0), 0)
        with pytest.raises(ValueError, match=r"quantizer\.init=keywords, .* choose kmeans or random"):
            quantizer.initialise(words)
    assert Quantizer(2, codebook_size=65_536).codebook.shape == (65_536, 2)
