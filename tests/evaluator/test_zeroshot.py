import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.evaluator.conftest import Fake
from tldr.evaluator.zeroshot import Zeroshot, imagenet

NAMES = ["cat", "dog", "frog", "ship", "truck", "plane", "deer"]
TEMPLATES = ["a photo of a {}.", "art of the {}.", "{}"]
OWNERS = np.arange(21) % 7
SENTENCES = [template.format(name) for name in NAMES for template in TEMPLATES]


class Embedder(Fake):
    def __init__(self, images, sentences):
        super().__init__()
        self.images, self.sentences = images, sentences

    def embed_images(self, images):
        return self.images[self.numbers(images)]

    def embed_texts(self, captions):
        return self.sentences[[SENTENCES.index(caption) for caption in captions]]


class OnlyJudge(Fake):
    def __init__(self, odds):
        super().__init__()
        self.odds = odds

    def image_tokens(self, images):
        return torch.tensor(self.numbers(images)).float()[:, None, None]

    def match(self, image_tokens, captions):
        return self.odds[image_tokens[:, 0, 0].long(), [SENTENCES.index(caption) for caption in captions]]


@pytest.fixture
def pairs(build):
    return build(range(21), [NAMES[owner] for owner in OWNERS])


def count(scores):
    """(N, C) scores without ties -> top1 and top5 by sorting."""
    order = np.argsort(-scores, 1)
    return [100 * np.mean([owner in row[:k] for owner, row in zip(OWNERS, order, strict=True)]) for k in (1, 5)]


def evaluate(model, pairs, **options):
    return Zeroshot(**{"templates": TEMPLATES, "progress": False, "classes": NAMES, **options})(model, pairs)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_embeddings_of_templates_are_averaged(pairs, batch_size):
    generator = torch.Generator().manual_seed(0)
    sentences = F.normalize(torch.randn(21, 4, generator=generator), dim=1)
    images = sentences.view(7, 3, 4).mean(1)[OWNERS] + 0.5 * torch.randn(21, 4, generator=generator)
    images = F.normalize(images, dim=1)
    centres = F.normalize(sentences.view(7, 3, 4).mean(1), dim=1)
    expected = count((images @ centres.T).numpy())
    found = evaluate(Embedder(images, sentences), pairs, batch_size=batch_size)
    assert [found["zeroshot/top1"], found["zeroshot/top5"]] == pytest.approx(expected)
    assert 20 < expected[0] < expected[1]
    assert (found["zeroshot/classes"], found["zeroshot/images"]) == (7, 21)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_model_that_only_matches_is_asked_about_every_sentence(pairs, batch_size):
    odds = torch.randn(21, 21, generator=torch.Generator().manual_seed(1))
    odds[torch.arange(21), 3 * OWNERS] += 2
    expected = count(odds.view(21, 7, 3).mean(2).numpy())
    found = evaluate(OnlyJudge(odds), pairs, batch_size=batch_size)
    assert [found["zeroshot/top1"], found["zeroshot/top5"]] == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"441 times.*evaluator.zeroshot.max_matches=440"):
        evaluate(OnlyJudge(odds), pairs, max_matches=440)


def test_a_constant_model_scores_chance(pairs):
    same = F.normalize(torch.ones(21, 4), dim=1)
    found = evaluate(Embedder(same, same), pairs)
    assert found["zeroshot/top1"] == pytest.approx(100 / 7)
    assert found["zeroshot/top5"] == pytest.approx(500 / 7)


def test_classes_are_those_of_the_captions_unless_given(pairs):
    eye = torch.eye(7)
    sentences = eye.repeat_interleave(3, 0)
    found = evaluate(Embedder(eye[OWNERS], sentences), pairs, classes=None)
    assert found["zeroshot/top1"] == 100.0
    with pytest.raises(ValueError, match="'deer' is none of the 5 classes"):
        evaluate(Embedder(eye[OWNERS], sentences), pairs, classes=["cat", "dog", "frog", "ship", "truck"])


def test_templates_may_be_named(pairs):
    seen = []

    class Reader(Embedder):
        def embed_texts(self, captions):
            seen.extend(captions)
            return torch.ones(len(captions), 7)

    evaluate(Reader(torch.eye(7)[OWNERS], torch.eye(7)), pairs, templates="clip")
    assert [text for text in seen if "cat" in text][:2] == ["itap of a cat.", "a bad photo of the cat."]
    assert len(seen) == 7 * 7
    with pytest.raises(ValueError, match=r"evaluator\.zeroshot\.templates='clip80'; give a list of sentences, or clip"):
        Zeroshot(templates="clip80")


def test_imagenet_has_its_thousand_names():
    names, places = imagenet()
    assert len(names) == 1000
    assert names[0] == "tench"
    assert places["n01440764"] == places["tench, Tinca tinca"] == places["tench"] == 0
    assert names[places["n03710721"]] == "maillot, tank suit"  # not `maillot`, which another class is
    assert "crane" not in places
    assert {places["n02012849"], places["n03126707"]} == {i for i, name in enumerate(names) if name == "crane"}


def test_errors_say_what_to_do(pairs):
    with pytest.raises(ValueError, match="each needs one"):
        Zeroshot(templates=["a photo"])
    with pytest.raises(ValueError, match="give a list of names, imagenet, or null"):
        Zeroshot(classes="cifar10")
    with pytest.raises(ValueError, match="zeroshot: Fake lacks embed_images"):
        evaluate(Fake(), pairs)
