import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tldr.report.selection import write_report
from tldr.selector.base import Selection

FACTS = {"read": 41_000, "kept": 10, "quarantined": 1, "method": "tldr", "compression": 0.75, "seconds": 183.4}
VOID = {"meta", "img", "path", "use", "br"}


class Outline(HTMLParser):
    """Checks that tags close in order; gathers text, headings and attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def count(self, tag: str, kind: str) -> int:
        return sum(name == tag and attributes.get("class") == kind for name, attributes in self.tags)


@pytest.fixture
def report(tmp_path):
    def write(pool, decisions, **options):
        path = write_report(tmp_path / "out", pool, decisions, title="noise, reduced", facts=FACTS, **options)
        assert path == tmp_path / "out" / "report.html"
        return path.read_text(encoding="utf-8")

    return write


def test_facts_charts_and_galleries(report, pool, decisions):
    page = Outline(report(pool, decisions))
    assert page.headings[0] == "noise, reduced"
    for fact in ("41,000", "75 %", "3 min 03 s", pool.hash):
        assert fact in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 4  # alignment, words, sizes of clusters, shares of clusters
    for heading in ("Best kept", "Borderline, kept", "Borderline, dropped", "Worst dropped", "Cluster 0"):
        assert heading in page.headings
    assert "pair-0039" in page.text
    assert "alignment 39" in page.text  # the reason
    assert page.count("figure", "kept") == 2 * 10  # in a gallery, and in its cluster


def test_what_was_planted_and_what_is_left(report, pool, decisions):
    page = report(pool, decisions)
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", page) if "repeat" in row)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert (cells[1], cells[3]) == ("25.0 %", "0.0 %")
    assert "planted: mismatched" in page
    clean = report(pool.without_truth(), decisions)
    assert "planted:" not in clean
    assert "What was planted" not in clean


def test_page_needs_nothing_else(report, pool, decisions):
    page = report(pool, decisions)
    outline = Outline(page)
    sources = [value for _, found in outline.tags for name, value in found.items() if value and name in ("src", "href")]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources if not source.startswith("#"))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in outline.tags}
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_equal_selections_give_equal_pages(report, pool, decisions):
    assert report(pool, decisions) == report(pool, decisions)
    assert report(pool, decisions) != report(pool, decisions, seed=1)


def test_captions_are_text_whatever_they_hold(report, make_pool):
    hostile = [
        '<script>alert("x")</script>',
        "</p></body>",
        "&lt;b&gt;",
        'a "quote"',
        "كلب يركض",
        "x" * 10_000,
        "a\n\0b",
    ]
    captions = (hostile * 6)[:40]
    pool = make_pool(uid=[f"<i>{i:02}" for i in range(40)], caption=captions)
    table = Selection(np.arange(10), ["<b>why</b>"] * 40).decisions(pool)
    page = report(pool, table)
    outline = Outline(page)
    assert not {"script", "b", "i"} & {tag for tag, _ in outline.tags}
    assert "<b>why</b>" in outline.text
    assert "كلب يركض" in outline.text
    assert "x" * 300 not in page
    assert all(found.get("dir") == "auto" for tag, found in outline.tags if tag == "p" and found["class"] == "caption")


def test_a_picture_that_is_gone_says_so(report, pool, decisions, tmp_path):
    (tmp_path / "pictures" / "39.png").unlink()
    (tmp_path / "pictures" / "38.png").write_bytes(b"<html>")
    page = report(pool, decisions)
    assert ">missing file<" in page
    assert "not an image" in page


def test_a_draw_has_neither_scores_nor_clusters(report, pool):
    table = Selection(np.arange(10), ["drawn"] * 40, {"draw": np.arange(40)}).decisions(pool)
    page = Outline(report(pool, table))
    assert sum(tag == "svg" for tag, _ in page.tags) == 1
    assert {"Kept", "Dropped"} <= set(page.headings)
    assert "Inside a few clusters" not in page.headings


def test_refined_captions_stand_beside_the_original(report, pool, decisions):
    subset = pool.take(np.arange(30, 40))
    old = subset.captions.to_pylist()
    new = [f"{text}; a <generated> one" if i < 3 else text for i, text in enumerate(old)]
    refined = subset.with_column("caption_original", old).with_column("caption", new)
    page = Outline(report(pool, decisions, refined=refined))
    assert "3 of 10 captions changed" in page.text
    assert page.count("p", "before") == page.count("p", "after") == 3
    assert "a <generated> one" in page.text
    assert "Captions, refined" not in Outline(report(pool, decisions, refined=subset)).headings


def test_size_does_not_grow_with_the_pool(report, make_pool):
    pool = make_pool(300, size=200, caption=["long " * 2000] * 300)  # noise: the worst for JPEG
    scores = {"cluster": np.arange(300) % 30, "alignment": np.arange(300, dtype=np.float32)}
    table = Selection(np.arange(150, 300), ["why " * 10] * 300, scores).decisions(pool)
    subset = pool.take(np.arange(150, 300))
    refined = subset.with_column("caption_original", ["short"] * 150)
    assert len(report(pool, table, refined=refined)) < 3_000_000
