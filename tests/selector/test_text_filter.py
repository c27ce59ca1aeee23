import sys

import numpy as np
import pytest

from tldr.selector.text_filter import TextFilter

N = 300


@pytest.fixture
def mixed(pool):
    """Every third caption is too short, every third of the others names a zebra."""
    captions = [f"a picture of thing {i}" for i in range(N)]
    captions[::3] = ["two words"] * 100
    captions[1::9] = ["a Zebra, in the grass"] * len(captions[1::9])
    return pool.with_column("caption", captions)


def test_those_that_pass_are_drawn(mixed):
    one, other = (TextFilter()(mixed, None, keep=100, seed=seed) for seed in (0, 1))
    for selection in (one, other):
        assert (selection.rows % 3 != 0).all()
    assert 30 < len(np.intersect1d(one.rows, other.rows)) < 70  # 50 for two draws of 100 out of 200
    assert one.reasons[0] == "words: 2 (minimum 3)"
    draw = one.reasons[one.rows[0]]
    assert draw.startswith("passes, like 200 in all, of which 100 are kept: draw 0.")


def test_where_too_few_pass_the_least_bad_are_taken_back(mixed):
    captions = mixed.captions.to_pylist()
    captions[:30:3] = ["no"] * 10  # two rules broken
    selection = TextFilter()(mixed.with_column("caption", captions), None, keep=290, seed=0)
    assert np.setdiff1d(np.arange(N), selection.rows).tolist() == list(range(0, 30, 3))
    assert selection.reasons[30] == "words: 2 (minimum 3); taken back, as only 200 pass and 290 are kept"
    assert selection.reasons[0] == "words: 1 (minimum 3); characters: 2 (minimum 6)"
    assert selection.reasons[1] == "passes, like 200 in all"


def test_a_score_chooses_among_those_that_pass(mixed, signals, values):
    selection = TextFilter(score="clip.alignment")(mixed, signals, keep=50, seed=0)
    cosine = values["clip.alignment"].copy()
    cosine[::3] = -2
    assert set(selection.rows) == set(np.argsort(-cosine)[:50])
    assert TextFilter(score="clip.alignment").needs == ("clip.alignment",)


@pytest.mark.parametrize("form", ["list", "file"])
def test_a_vocabulary_is_asked_for(mixed, tmp_path, form):
    names = ["zebra", "sea lion"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    vocabulary = names if form == "list" else str(tmp_path / "names.txt")
    selection = TextFilter(vocabulary=vocabulary)(mixed, None, keep=34, seed=0)
    zebras = np.arange(1, N, 9)
    assert len(zebras) == 34
    assert np.array_equal(selection.rows, zebras)
    assert selection.reasons[1] == "passes, like 34 in all, of which 34 are kept"
    assert selection.reasons[2] == "no word of the vocabulary"
    assert selection.reasons[0] == "words: 2 (minimum 3); no word of the vocabulary"


def test_sizes_count_where_the_pool_has_them(mixed, capsys):
    sized = mixed.with_column("width", [100] * 150 + [640] * 150).with_column("height", [480] * N)
    rows = TextFilter()(sized, None, keep=100, seed=0).rows
    assert (rows >= 150).all()
    assert (rows % 3 != 0).all()
    assert "selector.side" not in capsys.readouterr().out
    assert (TextFilter()(mixed, None, keep=100, seed=0).rows < 150).any()
    assert "selector.side and selector.aspect have no effect: the pool has no columns" in capsys.readouterr().out


def test_the_language_counts_where_it_is_asked_for(mixed):
    pytest.importorskip("py3langid")
    captions = ["a brown dog runs through the park"] * 150 + ["ein brauner Hund läuft durch den Park"] * 150
    pool = mixed.with_column("caption", captions)
    selection = TextFilter(language="de")(pool, None, keep=150, seed=0)
    assert (selection.rows >= 150).all()
    assert selection.reasons[0] == "language en, not de"


def test_a_missing_detector_is_told_before_anything_is_scored(pool, monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    TextFilter().check(pool)
    with pytest.raises(ValueError, match=r"selector\.language needs py3langid"):
        TextFilter(language="en").check(pool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "EN"}, r"selector\.language='EN': a code of ISO 639-1 in two small letters"),
        ({"language": False}, r"selector\.language=False: .* for Norwegian"),
        ({"words": -1}, r"selector\.words=-1 must be at least 0"),
        ({"aspect": 0.5}, r"selector\.aspect=0\.5 must be at least 1"),
        ({"vocabulary": "nowhere.txt"}, r"selector\.vocabulary=nowhere\.txt: no such file"),
        ({"vocabulary": [" "]}, r"selector\.vocabulary is empty"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        TextFilter(**options)
