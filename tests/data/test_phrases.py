import re

import numpy as np
import pyarrow as pa
import pytest

from tldr.data import phrases
from tldr.data.phrases import Phrases, words


def column(texts: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def spaced(text: str) -> str:
    apart = re.sub(r"([,.;:?!`])", r" \1 ", text)
    return f" {' '.join(apart.split())} "


def test_words_end_at_blanks_and_punctuation():
    row, word = words(pa.array(["A dog, two  cats!", "", " \t", "t-shirt\nred"], pa.large_string()))
    assert word.to_pylist() == ["A", "dog", ",", "two", "cats", "!", "t-shirt", "red"]
    assert row.tolist() == [0, 0, 0, 0, 0, 0, 3, 3]


@pytest.mark.parametrize("size", [7, 65_536])
def test_the_tree_finds_what_a_search_for_every_phrase_finds(monkeypatch, size):
    monkeypatch.setattr(phrases, "CAPTIONS", size)
    rng = np.random.default_rng(0)
    letters = np.array([*"abcde", ",", "f."])

    def draw(low: int, high: int) -> str:
        return " ".join(rng.choice(letters, rng.integers(low, high)))

    captions = [draw(0, 12) for _ in range(200)]
    entries = list(dict.fromkeys(spaced(draw(1, 5)).strip() for _ in range(120)))
    row, entry = Phrases(entries).find(column(captions))
    expected = [
        (r, e)
        for r, caption in enumerate(captions)
        for e, phrase in enumerate(entries)
        if spaced(phrase) in spaced(caption)
    ]
    assert len(expected) > 300
    assert {len(phrase.split()) for phrase in entries} >= {1, 2, 3, 4}
    assert list(zip(row.tolist(), entry.tolist(), strict=True)) == expected


def test_words_are_whole_and_in_their_case():
    row, entry = Phrases(["cat", "New York", "york"]).find(column(["concatenate", "in New York.", "Cat", "new york"]))
    assert list(zip(row.tolist(), entry.tolist(), strict=True)) == [(1, 1), (3, 2)]


def test_nothing_to_find_or_to_look_in():
    assert Phrases(["", "a b"]).find(column(["a", "", "b a"]))[0].tolist() == []
    assert Phrases([]).find(column(["a"]))[0].tolist() == []
    assert Phrases(["a"]).find(column([]))[0].tolist() == []
