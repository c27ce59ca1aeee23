import json

import numpy as np
import pytest

from tldr.selector.metaclip import MetaCLIP, learn, threshold

N = 300


def told(pool, captions: list[str]):
    return pool.with_column("caption", captions)


def word_of(captions: list[str]) -> np.ndarray:
    return np.array([caption.split()[-1] for caption in captions])


@pytest.fixture
def captions() -> list[str]:
    """One entry each: 180 dogs, 90 cats, 20 owls, 10 newts."""
    names = np.repeat(["dog", "cat", "owl", "newt"], [180, 90, 20, 10])
    return [f"Of one {name}" for name in np.random.default_rng(0).permutation(names)]


ENTRIES = ["dog", "cat", "owl", "newt"]


def test_the_caps_hold(pool, captions):
    """100 of 300 by t = 35: all owls and newts, of dogs and cats 35 each, but for chance and for exactness."""
    pool, word = told(pool, captions), word_of(captions)
    kept = {name: [] for name in ENTRIES}
    for seed in range(200):
        selection = MetaCLIP(entries=ENTRIES)(pool, None, keep=100, seed=seed)
        for name in ENTRIES:
            kept[name].append((word[selection.rows] == name).sum())
    assert set(kept["owl"]) == {20}
    assert set(kept["newt"]) == {10}
    assert np.mean(kept["dog"]) == pytest.approx(35, abs=1)
    assert np.mean(kept["cat"]) == pytest.approx(35, abs=1)
    assert max(kept["dog"]) < 35 + 5 * np.sqrt(35)
    assert np.std(kept["dog"]) > 1  # a draw, not a quota


def test_the_reason_names_the_rarest_entry(pool, captions):
    captions[7], captions[8] = "a dog and an owl, a dog", "nothing"
    selection = MetaCLIP(entries=ENTRIES)(told(pool, captions), None, keep=100, seed=0)
    assert selection.reasons[7].startswith("probability 1 at t=")
    assert " by 2 entries, the rarest 'owl' of 2" in selection.reasons[7]
    assert selection.reasons[8].startswith("no entry in the caption; place 300 in the draw, 100 kept")
    dog = next(row for row, caption in enumerate(captions) if caption.endswith("one dog"))
    assert selection.reasons[dog].startswith(f"probability {selection.scores['probability'][dog]:.3g} at t=3")


def test_any_entry_that_fires_keeps_the_pair():
    """P = 1 - (1 - t/c)(1 - t/c'), and t makes the sum of P what is asked."""
    rng = np.random.default_rng(1)
    matched = rng.random((N, 6)) < [0.9, 0.7, 0.5, 0.3, 0.05, 0.02]
    row, entry = np.nonzero(matched)
    count = matched.sum(0)
    t, miss = threshold(row, count[entry], N, 120)
    chance = 1 - np.prod(1 - matched * np.minimum(t / count, 1), 1)
    assert -np.expm1(miss) == pytest.approx(chance, abs=1e-12)
    assert chance.sum() == pytest.approx(120, abs=1e-6)
    assert count[5] < t < count[0]


def test_each_is_kept_as_often_as_its_probability_says(pool):
    rng = np.random.default_rng(2)
    names = np.array(["red", "dog", "ball", "owl"])
    captions = [" ".join(names[rng.random(4) < [0.8, 0.5, 0.3, 0.05]]) or "a red" for _ in range(N)]
    pool, counts, chance = told(pool, captions), np.zeros(N), np.zeros(N)
    for seed in range(400):
        selection = MetaCLIP(entries=names.tolist())(pool, None, keep=100, seed=seed)
        counts[selection.rows] += 1
        chance = selection.scores["probability"]
    assert len(np.unique(chance.round(6))) > 5
    for value in np.unique(chance.round(6)):
        group = np.isclose(chance, value, atol=1e-6)
        assert counts[group].mean() / 400 == pytest.approx(value, abs=0.03)


def test_pairs_without_entry_go_last(pool, captions):
    selector = MetaCLIP(entries=["owl", "newt"])
    named = np.isin(word_of(captions), ["owl", "newt"])
    pool = told(pool, captions)
    few = selector(pool, None, keep=20, seed=0)
    assert named[few.rows].all()
    selection = selector(pool, None, keep=50, seed=0)
    assert named[selection.rows].sum() == 30
    assert (selection.scores["probability"] == named).all()
    other = selector(pool, None, keep=50, seed=1)
    assert not np.array_equal(selection.rows, other.rows)  # drawn


def test_entries_are_learned_from_the_captions(pool):
    captions = [f"a dog in new york, {i}" for i in range(100)] + [f"a cat in new clothes {i}" for i in range(200)]
    found = learn(told(pool, captions).captions, 50, 0.4)
    words = ["a", "cat", "clothes", "dog", "in", "new", "york"]
    assert found[: len(words)] == words
    assert "," not in found
    total = 100 * 7 + 200 * 6
    together = {  # places of the two, of the first and of the second
        "new york": (100, 300, 100), "new clothes": (200, 300, 200), "in new": (300, 300, 300),
        "dog in": (100, 100, 300), "a dog": (100, 300, 100), "a cat": (200, 300, 200), "cat in": (200, 200, 300),
    }  # fmt: skip
    npmi = {pair: np.log(n * total / (a * b)) / -np.log(n / total) for pair, (n, a, b) in together.items()}
    for cut in (0.4, 0.7, 0.9):
        bigrams = learn(told(pool, captions).captions, 50, cut)[len(words) :]
        assert set(bigrams) == {pair for pair, value in npmi.items() if value >= cut}


def test_the_count_follows_the_pool(pool):
    """300 pairs: two places make an entry; a larger pool asks for more."""
    captions = [f"thing {i // 2}" for i in range(N)]
    assert MetaCLIP()(told(pool, captions), None, keep=10, seed=0).reasons[0].count("rarest '0' of 2 captions") == 1
    with pytest.raises(ValueError, match=r"no word occurs 100 times in the captions; give selector\.entries"):
        MetaCLIP(rows_per_count=1)(told(pool, [f"thing{i}" for i in range(N)]), None, keep=10, seed=0)


@pytest.mark.parametrize("name", ["entries.txt", "metadata.json"])
def test_entries_come_from_a_file(pool, captions, tmp_path, name):
    text = json.dumps(ENTRIES) if name.endswith("json") else "\n".join(ENTRIES)
    (tmp_path / name).write_text(text)
    one = MetaCLIP(entries=str(tmp_path / name))(told(pool, captions), None, keep=50, seed=0)
    assert np.array_equal(one.rows, MetaCLIP(entries=ENTRIES)(told(pool, captions), None, keep=50, seed=0).rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entries": "nowhere.txt"}, r"selector\.entries=nowhere\.txt: no such file"),
        ({"entries": [""]}, r"selector\.entries is empty"),
        ({"npmi": 30}, r"selector\.npmi=30: normalised pointwise mutual information, inside \[-1, 1\]"),
        ({"min_count": 0}, r"selector\.min_count=0 must be at least 1"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        MetaCLIP(**options)
