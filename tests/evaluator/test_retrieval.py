import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.evaluator.conftest import numbered
from tldr.data.loading import PairsDataset
from tldr.data.tokenizer import Tokenizer
from tldr.evaluator import retrieval
from tldr.evaluator.retrieval import Retrieval
from tldr.model.blip import Blip
from tldr.pairs import Pairs, derive_uid

N_IMAGES, E = 15, 4
NAMES = [f"retrieval/{way}@{k}" for way in ("tr", "ir") for k in (1, 5, 10)]


class Table(nn.Module):
    """Embeds picture i, which is all of brightness i, and a caption that ends in a number, by looking them up."""

    image_size, resize_mode = 16, "shortest"
    device = torch.device("cpu")

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.images, self.texts = images, texts
        self.frozen = nn.BatchNorm1d(1).eval()
        self.seen: list[int] = []

    def embed_images(self, images: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        found = images[:, 0, 0, 0].long()
        self.seen += found.tolist()
        return self.images[found]

    def embed_texts(self, captions) -> Tensor:
        return self.texts[[int(caption.split()[-1]) for caption in captions]]


class Judge(Table):
    """Also matches, by a table of log-odds (image, text)."""

    def __init__(self, images: Tensor, texts: Tensor, odds: Tensor) -> None:
        super().__init__(images, texts)
        self.odds = odds

    def image_tokens(self, images: Tensor) -> Tensor:
        return images[:, :1, :1, :1].float().flatten(1)[..., None]  # (B, 1, 1): its number

    def match(self, image_tokens: Tensor, captions) -> Tensor:
        assert len(image_tokens) == len(captions)
        return self.odds[image_tokens[:, 0, 0].long(), [int(caption.split()[-1]) for caption in captions]]


@pytest.fixture(scope="module")
def owner():
    """The image of every text: image i has 1 + i % 7 of them."""
    return np.repeat(np.arange(N_IMAGES), 1 + np.arange(N_IMAGES) % 7)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, owner):
    root = tmp_path_factory.mktemp("pictures")
    for i in range(N_IMAGES):
        numbered(i, size=16).save(root / f"{i}.png")
    images, captions = [f"{i}.png" for i in owner], [f"text {j}" for j in range(len(owner))]
    uids = [derive_uid(*pair) for pair in zip(images, captions, strict=True)]
    return Pairs.build({"uid": uids, "image": images, "caption": captions}, root=root)


@pytest.fixture(scope="module")
def embeddings(owner):
    """Images and texts that find each other often, but not always."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(N_IMAGES, E, generator=generator)
    texts = images[owner] + 1.0 * torch.randn(len(owner), E, generator=generator)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def evaluate(model, pairs, **options):
    return Retrieval(progress=False, **options)(model, pairs)


def count(image_scores: np.ndarray, text_scores: np.ndarray, owner) -> dict[str, float]:
    """Recalls of (images, texts) and (texts, images) scores without ties, by sorting, as BLIP's script does."""
    found = {}
    for k in (1, 5, 10):
        first = np.argsort(-image_scores, 1)[:, :k]
        found[f"retrieval/tr@{k}"] = 100 * np.mean([(owner[first[i]] == i).any() for i in range(N_IMAGES)])
        first = np.argsort(-text_scores, 1)[:, :k]
        found[f"retrieval/ir@{k}"] = 100 * np.mean([owner[j] in first[j] for j in range(len(owner))])
    return found


# ------------------------------------------------------------------------------------------------ the evaluator


def test_recalls_are_those_of_sorting(pairs, owner, embeddings):
    images, texts = embeddings
    scores = (images @ texts.T).numpy()
    found = evaluate(Table(images, texts), pairs, batch_size=4)
    expected = count(scores, scores.T, owner)
    assert {name: found[name] for name in NAMES} == pytest.approx(expected)
    assert len(set(expected.values())) > 3  # the example can tell the numbers apart
    assert found["retrieval/mean"] == pytest.approx(sum(expected.values()) / 6)
    assert found["retrieval/images"] == N_IMAGES
    assert found["retrieval/texts"] == len(owner)


def test_the_size_of_steps_does_not_matter(pairs, embeddings, monkeypatch):
    whole = evaluate(Table(*embeddings), pairs, batch_size=100)
    monkeypatch.setattr(retrieval, "_CHUNK", 100)
    assert evaluate(Table(*embeddings), pairs, batch_size=7) == pytest.approx(whole)


def test_every_picture_is_embedded_once(pairs, embeddings):
    model = Table(*embeddings)
    evaluate(model, pairs, batch_size=4)
    assert sorted(model.seen) == list(range(N_IMAGES))


def test_a_perfect_model_finds_everything(pairs, owner):
    images = torch.eye(N_IMAGES)
    found = evaluate(Table(images, images[owner]), pairs)
    assert {found[name] for name in NAMES} == {100.0}


def test_a_constant_model_scores_chance(pairs, owner):
    one = F.normalize(torch.ones(1, 5), dim=1)
    found = evaluate(Table(one.expand(N_IMAGES, -1), one.expand(len(owner), -1)), pairs)
    for k in (1, 5, 10):
        assert found[f"retrieval/ir@{k}"] == pytest.approx(100 * k / N_IMAGES)
    captions = np.bincount(owner)
    assert found["retrieval/tr@1"] == pytest.approx(100 * np.mean(captions / len(owner)))


def test_a_model_of_nan_scores_nothing(pairs, owner):
    found = evaluate(Table(torch.full((N_IMAGES, E), torch.nan), torch.full((len(owner), E), torch.nan)), pairs)
    assert {found[name] for name in NAMES} == {0.0}


def test_the_same_words_of_two_pictures_share_their_place(tmp_path):
    for i in (0, 1):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    pairs = Pairs.build(
        {"uid": ["a", "b"], "image": ["0.png", "1.png"], "caption": ["text 0", "text 0"]}, root=tmp_path
    )
    found = evaluate(Table(torch.eye(2), torch.eye(2)), pairs)
    assert found["retrieval/tr@1"] == 50.0  # each picture's own caption is one of two equal ones
    assert found["retrieval/ir@1"] == 50.0  # the words find picture 0, which is right for one of the pairs


def test_the_model_is_left_as_it_was(pairs, embeddings):
    model = Table(*embeddings).train()
    model.frozen.eval()
    evaluate(model, pairs)
    assert model.training
    assert not model.frozen.training
    assert not torch.is_inference_mode_enabled()


def test_the_model_is_left_as_it_was_after_an_error(pairs, embeddings):
    model = Table(embeddings[0], embeddings[1][:3]).train()
    with pytest.raises(IndexError):
        evaluate(model, pairs)
    assert model.training


# ------------------------------------------------------------------------------------------------ re-ranking


@pytest.mark.parametrize("k", [1, 3, 12, 1000])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_reranking_is_match_plus_similarity_on_the_best(pairs, owner, embeddings, k, batch_size):
    images, texts = embeddings
    odds = 5 * torch.randn(N_IMAGES, len(owner), generator=torch.Generator().manual_seed(3))

    def again(scores: np.ndarray, odds: np.ndarray) -> np.ndarray:
        result = scores - 1000.0
        for query, row in enumerate(scores):
            best = np.argsort(-row)[:k]
            result[query, best] = row[best] + odds[query, best]
        return result

    scores = (images @ texts.T).double().numpy()
    expected = count(again(scores, odds.numpy()), again(scores.T, odds.numpy().T), owner)
    found = evaluate(Judge(images, texts, odds), pairs, batch_size=batch_size, rerank_k=k)
    assert {name: found[name] for name in NAMES} == pytest.approx(expected)


def test_a_perfect_judge_finds_what_similarity_proposes(pairs, owner, embeddings):
    images, texts = embeddings
    odds = torch.where(torch.arange(N_IMAGES)[:, None] == torch.from_numpy(owner), 10.0, -10.0)
    plain = evaluate(Table(images, texts), pairs)
    again = evaluate(Judge(images, texts, odds), pairs, rerank_k=5)
    for way in ("tr", "ir"):
        assert again[f"retrieval/{way}@1"] == pytest.approx(plain[f"retrieval/{way}@5"])
        assert again[f"retrieval/{way}@10"] == pytest.approx(plain[f"retrieval/{way}@10"])


def test_blip_is_evaluated_and_reranked(pairs, owner):
    torch.manual_seed(0)
    model = Blip(
        tokenizer=Tokenizer.learn(pairs.captions.to_pylist()).json,
        image={"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2},
        text={"width": 16, "depth": 1, "heads": 2, "max_length": 14},
        optimizer={"lr": 1e-3},
        queue_size=0,
    )
    for parameter in model.matcher.parameters():
        torch.nn.init.normal_(parameter, std=30)  # opinions that outweigh the similarity
    plain, again = evaluate(model, pairs, batch_size=8), evaluate(model, pairs, batch_size=8, rerank_k=1000)
    with torch.inference_mode():
        model.eval()
        data, captions = PairsDataset(pairs, image_size=32), pairs.captions.to_pylist()
        images = torch.stack([data.image(row) for row in range(len(pairs))])
        odds = torch.stack([model.match(model.image_tokens(images), [text] * len(pairs)) for text in captions], 1)
        scores = (odds + model.embed_images(images) @ model.embed_texts(captions).T).double()
    _, first = np.unique(data.image_ids, return_index=True)
    scores = scores[first].numpy()
    expected = count(scores, scores.T, data.image_ids)
    assert {name: again[name] for name in NAMES} == pytest.approx(expected)
    assert again != plain


def test_errors_say_what_to_do(pairs, embeddings):
    with pytest.raises(ValueError, match=r"Table lacks image_tokens and match, which rerank_k=5 needs"):
        evaluate(Table(*embeddings), pairs, rerank_k=5)
    with pytest.raises(ValueError, match="there are none"):
        evaluate(Table(*embeddings), pairs.take(np.array([], dtype=int)))
    with pytest.raises(ValueError, match="Linear lacks embed_images and embed_texts, and also image_tokens and match"):
        evaluate(nn.Linear(1, 1), pairs)
    with pytest.raises(ValueError, match=r"rerank_k=0 matches all pairs"):
        evaluate(OnlyJudge(torch.zeros(N_IMAGES, len(pairs))), pairs, rerank_k=5)


# ------------------------------------------------------------------------------------------------ matching alone


class OnlyJudge(nn.Module):
    """Matches by a table, and has no embeddings: as ViLT."""

    image_size, resize_mode = 16, "shortest"
    device = torch.device("cpu")

    def __init__(self, odds: Tensor) -> None:
        super().__init__()
        self.odds = odds
        self.seen: list[int] = []
        self.largest = 0

    def image_tokens(self, images: Tensor) -> Tensor:
        self.seen += images[:, 0, 0, 0].tolist()
        return images[:, :1, :1, :1].float().flatten(1)[..., None]  # (B, 1, 1): its number

    def match(self, image_tokens: Tensor, captions) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.largest = max(self.largest, len(captions))
        return self.odds[image_tokens[:, 0, 0].long(), [int(caption.split()[-1]) for caption in captions]]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_a_model_that_only_matches_is_asked_about_every_pair(pairs, owner, batch_size):
    odds = torch.randn(N_IMAGES, len(owner), generator=torch.Generator().manual_seed(1))
    odds[owner, torch.arange(len(owner))] += 1.5
    model = OnlyJudge(odds)
    found = evaluate(model, pairs, batch_size=batch_size)
    scores = odds.double().numpy()
    expected = count(scores, scores.T, owner)
    assert {name: found[name] for name in NAMES} == pytest.approx(expected)
    assert len(set(expected.values())) > 3
    assert sorted(model.seen) == list(range(N_IMAGES))  # each picture once
    assert model.largest <= batch_size


def test_ties_of_a_model_that_only_matches_are_taken_in_expectation(pairs, owner):
    """Whole log-odds from -1 to 1, counted over many random orders of equal ones."""
    odds = torch.randint(-1, 2, (N_IMAGES, len(owner)), generator=torch.Generator().manual_seed(2)).float()
    found = evaluate(OnlyJudge(odds), pairs)
    random = np.random.default_rng(0)
    counts = []
    for _ in range(2000):
        scores = odds.numpy() + 0.5 * random.random(odds.shape)
        counts.append(count(scores, scores.T, owner))
    for name in NAMES:
        assert found[name] == pytest.approx(np.mean([each[name] for each in counts]), abs=1.0)


def test_a_limit_guards_against_accidents_in_scale(pairs, owner):
    model = OnlyJudge(torch.zeros(N_IMAGES, len(owner)))
    with pytest.raises(ValueError, match=rf"{N_IMAGES * len(owner):,} times.*evaluator.retrieval.max_matches=100"):
        evaluate(model, pairs, max_matches=100)
    assert model.seen == []
