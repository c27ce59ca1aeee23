from itertools import product

import pytest
import torch

from tldr.nn.generate import beam_search, generate, sample
from tldr.nn.text import TextTransformer

V, END, START = 5, 0, 4
PROMPT = torch.tensor([START])


def build(seed: int = 0, max_length: int = 12) -> TextTransformer:
    """A decoder with opinions: BERT's start would make all words nearly as likely."""
    torch.manual_seed(seed)
    model = TextTransformer(V, width=8, depth=1, heads=2, max_length=max_length, image_width=4)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


def unigram(probabilities: list[float]) -> TextTransformer:
    """A decoder that always gives the words these probabilities."""
    model = build()
    torch.nn.init.zeros_(model.words.weight)
    with torch.no_grad():
        model.head_bias.copy_(torch.tensor(probabilities).log())
    return model


@pytest.fixture
def image():
    return torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def log_likelihood(model, image, text):
    """log p(text) of one (L, C) image, without a cache."""
    tokens = torch.tensor([[START, *text]])
    log_p = model.logits(model(tokens[:, :-1], image=image[None], causal=True)).log_softmax(-1)
    return float(log_p[0].gather(1, tokens[0, 1:, None]).sum())


def best_of_all(model, image, *, max_length, min_length, length_penalty):
    """The text that beam search looks for, among all that there are."""
    words = [word for word in range(V) if word != END]
    texts = [[*text, END] for n in range(min_length, max_length) for text in product(words, repeat=n)]
    texts += [list(text) for text in product(words, repeat=max_length)]  # cut before they end
    best = max(texts, key=lambda text: log_likelihood(model, image, text) / len(text) ** length_penalty)
    return [word for word in best if word != END]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("min_length", [0, 2])
def test_a_wide_beam_finds_the_best_of_all_texts(image, length_penalty, min_length):
    options = {"max_length": 4, "min_length": min_length, "length_penalty": length_penalty}
    model, image = build(), image[:3]
    with torch.no_grad():
        found = beam_search(model, image, PROMPT, end=END, num_beams=V**3, **options)
    assert found == [best_of_all(model, picture, **options) for picture in image]


def test_one_beam_is_greedy(image):
    """Without a length penalty: with one, a single beam may also go on after its best end."""
    lengths = set()
    for seed in range(8):
        model = build(seed)
        with torch.no_grad():
            greedy = sample(model, image, PROMPT, end=END, max_length=6)
            beam = beam_search(model, image, PROMPT, end=END, max_length=6, num_beams=1, length_penalty=0.0)
        assert beam == greedy
        lengths |= {len(text) for text in greedy}
    assert lengths >= {1, 3, 6}  # some end at once, some later, some are cut


def test_greedy_takes_the_likeliest_word(image):
    model = build()
    with torch.no_grad():
        for picture, text in zip(image, sample(model, image, PROMPT, end=END, max_length=6), strict=True):
            for i in range(len(text)):
                others = [[*text[:i], word] for word in range(V) if i or word != END]
                assert max(others, key=lambda other: log_likelihood(model, picture, other)) == text[: i + 1]


def test_nucleus_draws_from_the_nucleus_as_often_as_its_words_are_likely():
    model = unigram([0.02, 0.5, 0.3, 0.15, 0.03])  # 0.8 is reached by words 1 and 2
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        texts = sample(model, torch.zeros(500, 3, 4), PROMPT, end=END, max_length=10, top_p=0.75, generator=generator)
    count = torch.bincount(torch.tensor(texts).flatten(), minlength=V)
    assert count[[0, 3, 4]].tolist() == [0, 0, 0]
    torch.testing.assert_close(count[1:3] / count.sum(), torch.tensor([0.625, 0.375]), atol=0.03, rtol=0)


def test_nucleus_of_everything_draws_everything():
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        texts = sample(
            unigram([0.2, 0.1, 0.1, 0.3, 0.3]), torch.zeros(2000, 3, 4), PROMPT,
            end=END, max_length=1, min_length=0, top_p=1.0, generator=generator,
        )  # fmt: skip
    count = torch.bincount(torch.tensor([text[0] if text else END for text in texts]), minlength=V)
    torch.testing.assert_close(count / 2000, torch.tensor([0.2, 0.1, 0.1, 0.3, 0.3]), atol=0.03, rtol=0)


def test_a_small_nucleus_is_greedy(image):
    model = build()
    with torch.no_grad():
        drawn = sample(model, image, PROMPT, end=END, max_length=6, top_p=1e-6)
        assert drawn == sample(model, image, PROMPT, end=END, max_length=6)


def test_nucleus_repeats_by_its_generator(image):
    first, again, other = (
        generate(build(), image, PROMPT, end=END, max_length=8, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("strategy", ["greedy", "nucleus", "beam"])
def test_lengths_hold_and_the_end_is_not_in_the_text(image, strategy):
    model = unigram([0.6, 0.1, 0.1, 0.1, 0.1])  # ends as soon as it may
    with torch.no_grad():
        texts = generate(model, image, PROMPT, end=END, strategy=strategy, min_length=3, max_length=7)
    assert all(3 <= len(text) <= 7 and END not in text for text in texts)
    assert strategy == "nucleus" or {len(text) for text in texts} == {3}


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_a_picture_is_told_alike_in_any_company(image, strategy):
    model = build(2)
    with torch.no_grad():
        together = generate(model, image, PROMPT, end=END, strategy=strategy, min_length=1)
        alone = [generate(model, one[None], PROMPT, end=END, strategy=strategy, min_length=1)[0] for one in image]
    assert together == alone
    assert len({tuple(text) for text in together}) > 1  # and the pictures do matter


def test_texts_end_where_the_decoder_does(image):
    model = unigram([1e-6, 0.4, 0.3, 0.2, 0.1])
    with torch.no_grad():
        texts = generate(model, image, PROMPT, end=END, strategy="greedy", max_length=99)
    assert {len(text) for text in texts} == {11}  # 12 places, one of them the prompt's


def test_errors_name_the_option(image):
    wrong = [("num_beams", 0), ("max_length", 0), ("min_length", 9), ("min_length", 2.5)]
    for key, value in wrong:
        with pytest.raises(ValueError, match=f"{key}={value} must be "):
            generate(build(), torch.zeros(1, 3, 4), PROMPT, end=END, **{"max_length": 8, key: value})
    with pytest.raises(ValueError, match="strategy='best'; choose from greedy, nucleus, beam"):
        generate(build(), image, PROMPT, end=END, strategy="best")
    with pytest.raises(ValueError, match="top_p=0"):
        generate(build(), image, PROMPT, end=END, top_p=0)
