import pytest
import torch

from tldr.nn import answers
from tldr.nn.answers import answer_nll, rank
from tldr.nn.text import TextTransformer

START, END, PAD, V = 0, 1, 2, 9
ANSWERS = [[3], [4], [3, 5], [3, 5, 6], [7, 7], [8, 3, 4, 5], [6]]


@pytest.fixture
def decoder() -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer(V, width=8, depth=2, heads=2, max_length=8, image_width=8, separate_decoder=True)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture
def question():
    """Five questions of 1 to 4 tokens, whose pads hold what would matter if it were read."""
    states = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(2))
    return states, torch.arange(4) < torch.tensor([[2], [4], [1], [2], [3]])


def padded(texts) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, texts)) + 2
    rows = [[START, *text, END] + [PAD] * (longest - len(text) - 2) for text in texts]
    tokens = torch.tensor(rows)
    return tokens, tokens != PAD


@torch.no_grad()
def naive(decoder, text, states, mask, smoothing=0.0):
    """Of one answer to one question, without pads."""
    tokens = torch.tensor([[START, *text, END]])
    log_p = decoder.logits(decoder(tokens[:, :-1], image=states[mask][None], causal=True))[0].log_softmax(1)
    rows = zip(log_p, tokens[0, 1:], strict=True)
    return sum(float(-(1 - smoothing) * row[word] - smoothing * row.mean()) for row, word in rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_an_answer_costs_what_it_does_alone(decoder, question, smoothing):
    states, mask = question
    found = answer_nll(decoder, padded(ANSWERS[1:6]), states, mask, label_smoothing=smoothing)
    expected = [naive(decoder, text, states[i], mask[i], smoothing) for i, text in enumerate(ANSWERS[1:6])]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("chunk", [1024, 3])
@pytest.mark.parametrize("top_k", [1, 2, 3, 7, 99])
@torch.no_grad()
def test_ranking_is_brute_force(decoder, question, top_k, chunk, monkeypatch):
    monkeypatch.setattr(answers, "_CHUNK", chunk)
    states, mask = question
    expected = []
    for one, real in zip(states, mask, strict=True):
        start = decoder.logits(decoder(torch.tensor([[START]]), image=one[real][None], causal=True))[0, 0]
        first = sorted(range(len(ANSWERS)), key=lambda i: -float(start[ANSWERS[i][0]]))
        # Of those that share a first word either may be cut: take a k that does not cut among equals.
        if top_k < 7 and ANSWERS[first[top_k - 1]][0] == ANSWERS[first[top_k]][0]:
            expected.append(None)
            continue
        expected.append(min(first[:top_k], key=lambda i: naive(decoder, ANSWERS[i], one, real)))
    assert any(place is not None for place in expected)
    found = rank(decoder, padded(ANSWERS), states, mask, top_k=top_k).tolist()
    assert all(want in (None, got) for want, got in zip(expected, found, strict=True))
    assert top_k < 7 or len(set(found)) > 1  # the question matters
