"""Simple rules for captions and pictures, DataComp's basic filter (Gadre et al. 2023, arXiv 2304.14108, section 5 and
its code): enough words and characters, English, no small or narrow picture. For each pair it is reported which rules it
breaks, and by how much.

Shapes: N pairs.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tldr.pairs import Pairs

SIZES = (("width", "height"), ("original_width", "original_height"))  # columns, ours and DataComp's


@dataclass(frozen=True)
class Rule:
    """``broken`` (N,) bool; ``told`` is the message, in which ``{}`` stands for a pair's ``value`` (N,)."""

    broken: np.ndarray
    value: np.ndarray
    told: str

    def of(self, row: int) -> str:
        """How the pair breaks it."""
        return self.told.format(self.value[row])


def captions(pool: Pairs, *, words: int, characters: int, language: str | None) -> list[Rule]:
    """Rules: at least so many ``words`` (between white space) and ``characters``, and the ``language`` (None: any), an
    ISO 639-1 code, as detected by py3langid. Raises ValueError if one is given and py3langid is not installed."""
    text = pool.captions
    number = pool.words
    length = pc.utf8_length(text).to_numpy()
    rules = [
        Rule(number < words, number, f"words: {{}} (minimum {words})"),
        Rule(length < characters, length, f"characters: {{}} (minimum {characters})"),
    ]
    if language is not None:
        spoken = languages(text)
        rules.append(Rule(spoken != language, spoken, f"language {{}}, not {language}"))
    return rules


def pictures(pool: Pairs, *, side: int, aspect: float) -> list[Rule]:
    """Rules: the shorter side has at least ``side`` pixels, the longer one at most ``aspect`` times as many as the
    shorter. A pool without columns of sizes has no rules, and a line says so; a pair without sizes breaks none."""
    for names in SIZES:
        if set(names) <= set(pool.table.column_names):
            sides = np.stack([pool.table[name].cast(pa.float64()).to_numpy() for name in names])
            short, long = sides.min(0), sides.max(0)
            shape = long / np.maximum(short, 1)
            return [
                Rule(short < side, short, f"shorter side: {{:.0f}} pixels (minimum {side})"),
                Rule(shape > aspect, shape, f"aspect ratio: {{:.2f}} (maximum {aspect:g})"),
            ]
    told = " or ".join(", ".join(names) for names in SIZES)
    print(f"selector.side and selector.aspect have no effect: the pool has no columns {told}")
    return []


def check_language(language: object) -> None:
    """Raises ValueError for what no caption can be in."""
    if language is not None and not (isinstance(language, str) and re.fullmatch("[a-z]{2}", language)):
        raise ValueError(
            f"selector.language={language!r}: a code of ISO 639-1 in two small letters, such as en, or null (any); for "
            "Norwegian, which YAML takes for false, \"selector.language='no'\""
        )


def detector() -> Any:
    """What tells the language of a text. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module("py3langid")  # not `import`: the package does without
    except ImportError as error:
        raise ValueError(
            "selector.language needs py3langid: pip install 'tldr-vlp[language]', or selector.language=null"
        ) from error


def languages(text: pa.ChunkedArray) -> np.ndarray:
    """(N,) the language of every caption, as ISO 639-1 codes; a caption that occurs often is looked at once."""
    coded = pc.dictionary_encode(text).combine_chunks() if len(text) else pa.array([""]).dictionary_encode()
    classify = detector().classify
    spoken = np.array([classify(caption)[0] for caption in coded.dictionary.to_pylist()])
    return spoken[coded.indices.to_numpy()]


def broken(rules: list[Rule]) -> np.ndarray:
    """(N,) how many of the rules each pair breaks."""
    return np.stack([rule.broken for rule in rules]).sum(0)


def told(rules: list[Rule], row: int) -> str:
    """What is wrong with a pair; nothing where it breaks no rule."""
    return "; ".join(rule.of(row) for rule in rules if rule.broken[row])
