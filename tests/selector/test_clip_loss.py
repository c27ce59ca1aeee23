import math

import numpy as np
import pytest
import torch

from tldr.selector import clip_loss
from tldr.selector.clip_loss import ClipLoss

N = 300


def normal(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def directly(image: np.ndarray, text: np.ndarray, t: float) -> np.ndarray:
    """The formula, term by term."""
    s = image @ text.T
    found = []
    for i in range(len(s)):
        over_texts = sum(math.exp((s[i, j] - 1) / t) for j in range(len(s)))
        over_images = sum(math.exp((s[j, i] - 1) / t) for j in range(len(s)))
        found.append(s[i, i] - t / 2 * (math.log(over_texts) + math.log(over_images) + 2 / t))
    return np.array(found)


@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_one_batch_is_the_formula(pool, signals, values, monkeypatch, temperature):
    monkeypatch.setattr(clip_loss, "_BLOCK", 64)  # several, the last one shorter
    selection = ClipLoss(temperature=temperature)(pool, signals, keep=75, seed=0)
    image, text = normal(values["clip.embedding"]), normal(values["clip.text_embedding"])
    expected = directly(image, text, temperature)
    assert selection.scores["clip_loss"] == pytest.approx(expected, abs=1e-5)
    assert set(selection.rows) == set(np.argsort(-selection.scores["clip_loss"])[:75])
    found, score = (selection.scores[name] for name in ("clip_loss", "clip_score"))
    assert score == pytest.approx((image * text).sum(1), abs=1e-5)
    assert selection.reasons[0] == (
        f"negCLIPLoss {found[0]:.4g}: CLIP score {score[0]:.3g} less {score[0] - found[0]:.3g} for the batch; "
        f"cut at {np.sort(found)[-75]:.4g}"
    )


def test_the_mean_of_several_divisions(pool, signals, values):
    """Batches of 100: the divisions are those that the seed draws."""
    image, text = normal(values["clip.embedding"]), normal(values["clip.text_embedding"])
    rng, total = np.random.default_rng(5), np.zeros(N)
    for _ in range(3):
        for rows in np.array_split(rng.permutation(N), 3):
            total[rows] += directly(image[rows], text[rows], 0.01)
    found = ClipLoss(batch_size=100, shuffles=3)(pool, signals, keep=75, seed=5).scores["clip_loss"]
    assert found == pytest.approx(total / 3, abs=1e-5)
    other = ClipLoss(batch_size=100, shuffles=3)(pool, signals, keep=75, seed=6).scores["clip_loss"]
    assert np.abs(other - found).max() > 1e-3
    many = [ClipLoss(batch_size=100, shuffles=30)(pool, signals, keep=75, seed=s).scores["clip_loss"] for s in (5, 6)]
    assert np.abs(many[0] - many[1]).mean() < 0.6 * np.abs(other - found).mean()  # it converges


def test_a_caption_for_every_picture_loses(pool, values, store):
    """20 captions lie in the middle of all pictures. Their CLIP score is 0.6, above 0.39 of 140 pairs whose caption
    says what is in the picture and in no other; 140 more have 0.72."""
    own, middle = np.eye(N + 2)[:N], np.eye(N + 2)[N]
    elsewhere = np.eye(N + 2)[N + 1]  # what captions say that no picture shows
    near, said = np.full((N, 1), 0.6), np.full((N, 1), 0.9)
    near[160:], said[160:] = 0.2, 0.4
    image = near * middle + np.sqrt(1 - near**2) * own
    text = said * own + np.sqrt(1 - said**2) * elsewhere
    text[:20] = middle
    order = np.random.default_rng(0).permutation(N)
    values["clip.embedding"], values["clip.text_embedding"] = (x[order].astype(np.float32) for x in (image, text))
    hub = order < 20
    selection = ClipLoss()(pool, store(values), keep=280, seed=0)
    assert hub[np.argsort(-selection.scores["clip_score"])[:160]].sum() == 20
    assert np.array_equal(selection.rows, np.flatnonzero(~hub))


def test_low_similarities_do_not_vanish():
    """At T = 0.01 exp(s / T) leaves float32 below -0.87."""
    image = torch.eye(3)
    text = -image
    found = ClipLoss(temperature=0.005).normaliser(image, text)
    assert found == pytest.approx(np.full(3, 0.005 * math.log(2)), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"selector\.temperature=0 must be above 0"),
        ({"temperature": np.nan}, r"selector\.temperature=nan must be above 0, and finite"),
        ({"shuffles": 2.5}, r"selector\.shuffles=2\.5 must be a whole number"),
        ({"batch_size": 1}, r"selector\.batch_size=1 must be at least 2"),
        ({"shuffles": 0}, r"selector\.shuffles=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        ClipLoss(**options)
