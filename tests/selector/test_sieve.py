import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from tldr.pairs import Pairs
from tldr.selector.sieve import MEDIUM, SentenceEncoder, Sieve, scaled, tf_idf

N = 300
THINGS = ("red disc", "blue star", "green box", "old dog", "small cat")


class Scribe:
    """Sees the thing of a picture, but in every other draw something else."""

    varies = True

    def __init__(self, things: dict[str, str]) -> None:
        self.things, self.draws = things, []

    def write(self, pairs: Pairs, *, draw: int = 0) -> list[str]:
        self.draws.append(draw)
        return [f"a photo of a {self.things[image]}" if draw % 2 else "words" for image in pairs.images.to_pylist()]


@pytest.fixture
def thing() -> np.ndarray:
    return np.random.default_rng(0).choice(THINGS, N)


@pytest.fixture
def wrong() -> np.ndarray:
    return np.random.default_rng(1).random(N) < 0.4


@pytest.fixture
def spoken(pool, thing, wrong) -> Pairs:
    """Captions that name the thing in the picture, or a thing of another kind."""
    said = [THINGS[(THINGS.index(name) + bad) % len(THINGS)] for name, bad in zip(thing, wrong, strict=True)]
    return pool.with_column("caption", [f"Stock photo: {name}, number {i}" for i, name in enumerate(said)])


@pytest.fixture
def scribe(pool, thing) -> Scribe:
    return Scribe(dict(zip(pool.images.to_pylist(), thing, strict=True)))


def test_captions_that_say_what_is_there_are_kept(spoken, scribe, wrong):
    selection = Sieve()(spoken, None, keep=150, seed=0, writer=scribe)
    assert scribe.draws == list(range(8))
    assert wrong.mean() > 0.3
    assert not wrong[selection.rows].any()
    score = selection.scores["sieve"]
    assert score[wrong].max() == 0 < score[~wrong].min()
    row = selection.rows[0]
    thing = scribe.things[spoken.images[int(row)].as_py()]
    assert selection.reasons[row].startswith(f"similarity {score[row]:.3g} to 'a photo of a {thing}', cut at ")


def test_the_best_of_several_draws_counts(spoken, scribe):
    one = Sieve(draws=1)(spoken, None, keep=150, seed=0, writer=scribe).scores["sieve"]
    two = Sieve(draws=2)(spoken, None, keep=150, seed=0, writer=scribe).scores["sieve"]
    assert (one == 0).all()
    assert (two > 0).any()


def test_captions_that_do_not_vary_are_not_compared_again(spoken, scribe):
    scribe.varies = False
    with pytest.raises(ValueError, match=r"selector\.draws=2, but only generation\.strategy=nucleus draws"):
        Sieve(draws=2)(spoken, None, keep=150, seed=0, writer=scribe)
    assert not scribe.draws  # nothing was written for that
    Sieve(draws=1)(spoken, None, keep=150, seed=0, writer=scribe)


def test_medium_phrases_are_no_agreement(pool):
    captions = pa.array(["A photo of a dog", "stock photo, an image of photographs", "Image"])
    assert Sieve().strip(captions).to_pylist() == ["a dog", ",  photographs", ""]
    assert Sieve(medium=[]).strip(captions).to_pylist()[0] == "a photo of a dog"
    assert len(MEDIUM) == 8
    pool = pool.with_column("caption", ["a photo of a dog"] * N).with_column("written", ["a photo of a car"] * N)
    plain = Sieve(captions="written")(pool, None, keep=75, seed=0).scores["sieve"]
    raw = Sieve(captions="written", medium=())(pool, None, keep=75, seed=0).scores["sieve"]
    assert (plain < raw).all()


def test_a_column_has_the_captions(spoken, scribe, wrong):
    kept = Sieve()(spoken, None, keep=150, seed=0, writer=scribe).scores["sieve"]
    lists = [list(texts) for texts in zip(*(scribe.write(spoken, draw=draw) for draw in range(8)), strict=True)]
    selector = Sieve(captions="written")
    assert not selector.needs_writer
    assert np.array_equal(selector(spoken.with_column("written", lists), None, keep=150, seed=0).scores["sieve"], kept)
    single = spoken.with_column("written", scribe.write(spoken, draw=1))
    assert np.array_equal(selector(single, None, keep=150, seed=0).scores["sieve"], kept)


def test_what_nothing_was_written_for_goes_first(spoken):
    written = [["old dog"], [], [""], None] * 75
    captions = ["an old dog"] * N
    pool = spoken.with_column("caption", captions).with_column("written", written)
    selection = Sieve(captions="written")(pool, None, keep=75, seed=0)
    assert np.array_equal(selection.rows, np.arange(0, N, 4))
    assert selection.reasons[1].startswith("nothing was written, cut at ")
    assert (np.delete(selection.scores["sieve"].reshape(75, 4), 0, 1) == 0).all()


def test_the_clip_score_is_fused(spoken, scribe, signals, values):
    selection = Sieve(clip_weight=0.5)(spoken, signals, keep=75, seed=0, writer=scribe)
    sieve, clip = selection.scores["sieve"], values["clip.alignment"]
    fused = 0.5 * (sieve - sieve.min()) / np.ptp(sieve) + 0.5 * (clip - clip.min()) / np.ptp(clip)
    assert selection.scores["fused"] == pytest.approx(fused, abs=1e-6)
    assert set(selection.rows) == set(np.argsort(-selection.scores["fused"], kind="stable")[:75])
    assert f", with CLIP score {clip[0]:.3g} {fused[0]:.3g}, cut at " in selection.reasons[0]
    assert Sieve(clip_weight=0.5).needs == ("clip.alignment",)
    assert scaled(np.array([3.0, 3.0])).tolist() == [0, 0]


@pytest.mark.parametrize("together", [7, 1000])
def test_tf_idf_is_the_cosine_of_weighted_terms(together, monkeypatch):
    monkeypatch.setattr("tldr.data.phrases.CAPTIONS", together)
    monkeypatch.setattr("tldr.selector.sieve.CAPTIONS", together)
    rng = np.random.default_rng(3)
    letters = np.array([*"abcdefg"])
    found = [" ".join(rng.choice(letters, rng.integers(0, 8))) for _ in range(40)]
    text = [" ".join(rng.choice(np.array([*"abcdefgx"]), rng.integers(0, 8))) for _ in range(90)]
    row = rng.integers(0, 40, 90)

    def terms(one: str) -> Counter:
        words = re.findall(r"\w+", one)
        return Counter([*words, *(" ".join(pair) for pair in pairwise(words))])

    frequency = Counter(term for one in found for term in terms(one))

    def weighted(one: str) -> dict[str, float]:
        return {term: n * (math.log(41 / (1 + frequency[term])) + 1) for term, n in terms(one).items()}

    expected = []
    for at, one in zip(row, text, strict=True):
        a, b = weighted(found[at]), weighted(one)
        size = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
        expected.append(sum(a[t] * b[t] for t in a.keys() & b.keys()) / size if size else 0)
    assert max(expected) > 0.3
    cosine = tf_idf(pa.array(found, pa.large_string()), pa.array(text, pa.large_string()), row)
    assert cosine == pytest.approx(np.array(expected), abs=1e-9)


def test_a_sentence_encoder_reads_the_texts(spoken, scribe, tmp_path):
    """A BERT of random weights: the same text is the same vector, whatever it is padded with."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for t in THINGS for w in t.split()}), "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert")
    texts = pa.array(["red disc", "a small cat", "red disc", ""], pa.large_string())
    vectors = SentenceEncoder(str(tmp_path / "bert"), 2)(texts)
    assert vectors.shape == (4, 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(vectors[0], vectors[2])
    assert vectors == pytest.approx(SentenceEncoder(str(tmp_path / "bert"), 8)(texts), abs=1e-5)
    ids = BertTokenizer(str(tmp_path / "vocab.txt"))(["a small cat"], return_tensors="pt")
    mean = model(**ids).last_hidden_state[0].mean(0).detach().numpy()
    assert vectors[1] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)

    selector = Sieve(sentence_encoder=str(tmp_path / "bert"), draws=2)
    same = selector(spoken.with_column("caption", ["words"] * N), None, keep=75, seed=0, writer=scribe)
    assert same.scores["sieve"] == pytest.approx(np.ones(N), abs=1e-5)


def test_a_checkpoint_that_is_none_is_named(spoken, tmp_path):
    with pytest.raises(ValueError, match=r"selector\.sentence_encoder=\S+ is no transformers checkpoint"):
        Sieve(sentence_encoder=str(tmp_path)).check(spoken)  # before anybody writes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, r"selector\.draws=0 must be at least 1"),
        ({"medium": "a photo of"}, r"selector\.medium='a photo of' is one text; .*selector\.medium=\['a photo of'\]"),
        ({"clip_weight": 2}, r"selector\.clip_weight=2: a share of the sum, inside \[0, 1\]"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        Sieve(**options)


def test_a_column_that_is_not_there_is_named(pool):
    with pytest.raises(ValueError, match=r"selector\.captions=generated: the pool has no such column; it has uid"):
        Sieve(captions="generated").check(pool)
    with pytest.raises(ValueError, match=r"selector\.captions=number holds int64, not texts"):
        Sieve(captions="number").check(pool.with_column("number", np.arange(N)))
