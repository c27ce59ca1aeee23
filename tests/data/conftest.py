"""Pictures and captions to read: small, and as bad as they come."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tldr.data.base import Bad, Reader, Row

HOSTILE = {
    "quotes": 'she said "hi" and \'left\', "" twice',
    "quoted": '"all of it"',
    "unclosed": '"it begins and never ends',
    "inner": 'a 17" screen, 3\'4" tall',
    "tab": "left\tright",
    "newlines": "one\ntwo\n\nfour",
    "crlf": "one\r\ntwo",
    "cr": "one\rtwo",
    "line separators": "a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg",
    "emoji": "a \U0001f468‍\U0001f469‍\U0001f467 at the \U0001f3d6️",
    "right to left": "\u202bكلب يركض\u202c ו\u200fחתול",
    "combining": "e\u0301 is not \u00e9",
    "nul": "before\0after",
    "long": "word, " * 1667,
    "spaces": "  two before, three after   ",
    "escapes": r"C:\new\table \" \\ \x41 %s {0}",
    "json": '{"image": "a.jpg", "caption": ["b"]}',
    "formula": "=1+1;a|b",
    "nothing": "null",
    "number": "007",
}


@pytest.fixture(params=HOSTILE.values(), ids=list(HOSTILE))
def hostile(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def all_hostile() -> list[str]:
    return list(HOSTILE.values())


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Saves a picture of noise, another for every seed."""

    def save(path: Path, seed: int = 0, *, size: int = 24, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, **options)
        return path

    return save


@pytest.fixture
def listed() -> Callable[[Iterable[Row | Bad]], Reader]:
    """A reader of the rows given."""

    def make(rows: Iterable[Row | Bad], root: Path = Path(), name: str = "listed") -> Reader:
        found = list(rows)

        class Listed(Reader):
            def __init__(self) -> None:
                self.name = name
                self.root = str(root)

            def rows(self) -> Iterator[Row | Bad]:
                return iter(found)

        return Listed()

    return make
