from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.evaluator.conftest import Fake, numbered
from tldr.evaluator.video import Video
from tldr.pairs import Pairs

CLIPS, FRAMES = 9, 4
OWNERS = np.repeat(np.arange(CLIPS), 1 + np.arange(CLIPS) % 3)  # one to three texts a clip


class Tables(Fake):
    """Frame f of clip c is number 8 c + f; tables of frames' and texts' embeddings, and of the log-odds of both."""

    def __init__(self, frames, texts, odds):
        super().__init__()
        self.frames, self.texts, self.odds = frames, texts, odds


class Watcher(Tables):
    def embed_images(self, images):
        return self.frames[self.numbers(images)]

    def embed_texts(self, captions):
        return self.texts[[int(caption) for caption in captions]]


class OnlyJudge(Tables):
    """Adds the log-odds of a clip's frames up."""

    def image_tokens(self, images):
        return torch.tensor(self.numbers(images)).float()[:, None, None].expand(-1, 2, 3)

    def match(self, image_tokens, captions):
        assert image_tokens.shape[1:] == (2 * FRAMES, 3)
        frames = image_tokens[:, ::2, 0].long()  # (B, F)
        return self.odds[frames, torch.tensor([[int(caption)] for caption in captions])].sum(1)


class Both(Watcher, OnlyJudge):
    pass


@pytest.fixture
def pairs(tmp_path):
    """Clips are folders of four frames; the locators speak of eight, and of whichever frame."""
    for clip in range(CLIPS):
        (tmp_path / f"v{clip}").mkdir()
        for frame in range(FRAMES):
            number = 8 * clip + frame
            numbered(number).save(tmp_path / f"v{clip}" / f"{frame}.png")
    images = [f"v{clip}#frame={row % 8}/8" for row, clip in enumerate(OWNERS)]
    uids = [f"{row:03}" for row in range(len(OWNERS))]
    captions = [str(row) for row in range(len(OWNERS))]
    return Pairs.build({"uid": uids, "image": images, "caption": captions}, root=tmp_path)


@pytest.fixture
def tables():
    generator = torch.Generator().manual_seed(0)
    frames = F.normalize(torch.randn(8 * CLIPS, 3, generator=generator), dim=1)
    seen = frames.view(CLIPS, 8, 3)[:, :FRAMES].mean(1)
    texts = F.normalize(seen[OWNERS] + 0.5 * torch.randn(len(OWNERS), 3, generator=generator), dim=1)
    odds = 2 * torch.randn(8 * CLIPS, len(OWNERS), generator=generator)
    return frames, texts, odds


def evaluate(model, pairs, **options):
    return Video(**{"frames": FRAMES, "progress": False, **options})(model, pairs)


def count(scores):
    """(Q, K) scores without ties -> recalls and median rank by sorting."""
    places = np.array([list(np.argsort(-row)).index(own) for row, own in zip(scores, OWNERS, strict=True)])
    found = {f"video/r@{k}": 100 * np.mean(places < k) for k in (1, 5, 10)}
    return {**found, "video/median_rank": np.median(places + 1), "video/clips": CLIPS, "video/texts": len(OWNERS)}


def cosines(frames, texts):
    clips = F.normalize(frames.view(CLIPS, 8, 3)[:, :FRAMES].mean(1), dim=1)
    return (texts @ clips.T).numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_clip_is_the_mean_of_its_frames(pairs, tables, batch_size):
    expected = count(cosines(*tables[:2]))
    assert evaluate(Watcher(*tables), pairs, batch_size=batch_size) == pytest.approx(expected)
    assert 0 < expected["video/r@1"] < expected["video/r@5"]
    assert expected["video/median_rank"] > 1  # the example can tell


def test_a_model_that_only_matches_sees_all_frames_at_once(pairs, tables):
    odds = tables[2]
    scores = odds.view(CLIPS, 8, -1)[:, :FRAMES].sum(1).T.numpy()
    assert evaluate(OnlyJudge(*tables), pairs) == pytest.approx(count(scores))
    with pytest.raises(ValueError, match=r"evaluator\.video\.max_matches=3"):
        evaluate(OnlyJudge(*tables), pairs, max_matches=3)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_reranking_is_match_plus_similarity_on_the_best(pairs, tables, k):
    frames, texts, odds = tables
    scores = cosines(frames, texts).astype(float)
    matched = odds.view(CLIPS, 8, -1)[:, :FRAMES].sum(1).T.numpy()
    again = scores - 1000
    for row in range(len(scores)):
        best = np.argsort(-scores[row])[:k]
        again[row, best] = scores[row, best] + matched[row, best]
    assert evaluate(Both(*tables), pairs, rerank_k=k) == pytest.approx(count(again))


def test_errors_say_what_to_do(pairs, tables, build):
    with pytest.raises(ValueError, match=r"'1.png' is not a frame.*data=msrvtt"):
        evaluate(Watcher(*tables), build([1], ["a"]))
    with pytest.raises(ValueError, match=r"video: Watcher lacks .* rerank_k=2 needs"):
        evaluate(Watcher(*tables), pairs, rerank_k=2)
    with pytest.raises(ValueError, match="frames=0"):
        Video(frames=0)
    (Path(pairs.root) / "v3" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="video: v3#frame=0/4"):
        evaluate(Watcher(*tables), pairs)
