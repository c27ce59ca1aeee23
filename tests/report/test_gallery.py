from pathlib import Path

import numpy as np

from tldr.report.figure import KEPT
from tldr.report.gallery import CAPTION, DROPPED, gallery_figure


def said(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def lines(figure) -> list[str]:
    return [line.get_color() for axes in figure.axes for line in axes.lines]


def test_every_pair_has_its_picture_and_caption(pool):
    figure = gallery_figure(pool, np.array([5, 1, 8]), title="three", notes=["one", "two", ""], columns=2)
    assert len(figure.axes) == 3
    assert said(figure)[0] == "three"
    assert [text.replace("\n", " ") for text in said(figure)[1::2]] == [pool.captions[row].as_py() for row in (5, 1, 8)]
    assert said(figure)[2::2] == ["one", "two", ""]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert all(picture.shape == (12, 12, 3) for picture in shown)
    assert not np.array_equal(shown[0], shown[1])
    assert lines(figure) == []


def test_what_was_kept_shows(pool):
    kept = np.zeros(len(pool), bool)
    kept[7] = True
    assert lines(gallery_figure(pool, [7, 3], kept=kept)) == [KEPT, DROPPED]


def test_words_stay_inside_their_picture_whatever_they_hold(make_pool, tmp_path):
    captions = ["costs $5 and $6 \\frac", "word " * 200, "a" * 500, " "]
    pool = make_pool(4, caption=captions)
    figure = gallery_figure(pool, range(4), title="$x$", columns=3)
    texts = [text for text in figure.texts if text.get_text()]
    assert texts[1].get_text() == "costs $5 and $6 \\frac"
    assert len(texts[2].get_text()) <= CAPTION + 1
    figure.savefig(tmp_path / "figure.png")
    for text, axes in zip(texts[1:], figure.axes, strict=False):
        box, picture = text.get_window_extent(), axes.get_window_extent()
        assert picture.x0 - 1 <= box.x0
        assert box.x1 <= picture.x1 + 20  # the gap
        assert 0 <= box.y0 < box.y1 <= picture.y0


def test_a_picture_that_is_gone_says_so(pool):
    (Path(pool.root) / "4.png").unlink()
    figure = gallery_figure(pool, [4, 5])
    assert figure.axes[0].texts[0].get_text().startswith("missing")
    assert not figure.axes[0].images
    assert figure.axes[1].images


def test_none(pool):
    figure = gallery_figure(pool, [], title="0 of 40")
    assert said(figure) == ["0 of 40"]
    assert figure.axes == []
