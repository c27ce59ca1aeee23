import random

from tldr.data.keywords import keywords


def test_words_and_phrases_of_a_corpus_written_by_hand():
    corpus = [
        "A large red circle at the top",
        "a large red circle, and a dog",
        "The large DOG.",
    ]
    assert keywords(corpus, 100) == [
        "large",  # 3
        "circle", "dog", "large red", "large red circle", "red", "red circle",  # 2, in alphabetical order
        "large dog", "top",  # 1
    ]  # fmt: skip
    assert keywords(corpus, 2) == ["large", "circle"]


def test_phrases_end_at_stop_words_and_punctuation():
    found = set(keywords(["red circle on blue square; star (ring) heart"], 100))
    assert {"red circle", "blue square", "star", "ring", "heart"} <= found
    assert not found & {"on", "circle on", "circle blue", "square star", "star ring", "ring heart"}


def test_phrases_have_three_words_at_most():
    found = keywords(["one two three four five"], 100)  # none of them a stop word
    assert max(len(phrase.split()) for phrase in found) == 3
    assert {"one two three", "two three four", "three four five"} <= set(found)


def test_words_of_any_language_and_with_apostrophes():
    found = keywords(["the dog's café, 24 Ünïcode\tхлеб 犬\n— e-mail 🏖"], 100)
    assert {"dog's", "café", "24", "ünïcode", "хлеб", "犬", "e-mail"} <= set(found)
    assert not any("🏖" in phrase or "—" in phrase for phrase in found)


def test_the_order_of_the_captions_does_not_matter():
    corpus = [f"a {colour} {shape} on the left" for colour in ("red", "blue", "lime") for shape in ("box", "dot")] * 2
    expected = keywords(corpus, 8)
    for seed in range(3):
        random.Random(seed).shuffle(corpus)
        assert keywords(iter(corpus), 8) == expected


def test_a_corpus_with_nothing_to_say():
    assert keywords([], 5) == []
    assert keywords(["", "of the", "...", "🏖"], 5) == []
