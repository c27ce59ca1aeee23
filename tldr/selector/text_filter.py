"""DataComp's filters by text (Gadre et al. 2023, arXiv 2304.14108, section 5 and its code).

    basic       English, more than 2 words and 5 characters, shorter side at least 200 pixels, aspect ratio at most 3
    text-based  English, and some word of the caption is in a vocabulary, there the names of ImageNet-21K

The first needs no list and is the default, except that any language passes without ``language=en``; a ``vocabulary``
adds the rule of the second. DataComp looks up a word's first meaning in WordNet; here a word or phrase of the list must
occur in the caption literally, ignoring case. A filter decides itself how many pairs pass: if more than wanted, a
random draw or a ``score`` chooses among them; if fewer, the pairs that break the fewest rules are taken back.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from tldr.data import basic
from tldr.data.phrases import Phrases
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, at_least, counts
from tldr.signal.store import Signals


class TextFilter(Selector):
    """``words`` and ``characters`` at least; ``language`` (``en``; None: any); ``side`` in pixels at least and
    ``aspect`` at most, where the pool has columns width and height; ``vocabulary``: words or phrases, or a file with
    one a line (None: none); ``score``: the signal by which those that pass are chosen (``clip.alignment``; None: a
    draw)."""

    def __init__(
        self,
        *,
        words: int = 3,
        characters: int = 6,
        language: str | None = None,
        side: int = 200,
        aspect: float = 3.0,
        vocabulary: str | Sequence[str] | None = None,
        score: str | None = None,
    ) -> None:
        counts(0, words=words, characters=characters, side=side)
        basic.check_language(language)
        at_least(1, aspect=aspect)
        self.words, self.characters, self.language, self.side, self.aspect = words, characters, language, side, aspect
        self.vocabulary = None if vocabulary is None else _read(vocabulary)
        self.score = score
        self.needs = (score,) if score else ()

    def check(self, pool: Pairs) -> None:
        """Raises ValueError where a language is asked for and nothing is there to tell it."""
        super().check(pool)
        if self.language is not None:
            basic.detector()

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Those that pass first, by score or as drawn; then those that break the fewest rules."""
        rules = basic.captions(pool, words=self.words, characters=self.characters, language=self.language)
        rules += basic.pictures(pool, side=self.side, aspect=self.aspect)
        if self.vocabulary is not None:
            row, _ = Phrases(self.vocabulary).find(pc.utf8_lower(pool.captions))
            named = np.zeros(len(pool), bool)
            named[row] = True
            rules.append(basic.Rule(~named, named, "no word of the vocabulary"))
        broken = basic.broken(rules)
        merit = np.random.default_rng(seed).random(len(pool), np.float32)
        scores, what = {"rules_broken": broken}, "draw"
        if self.score:
            assert signals is not None
            merit, what = signals[self.score].read().astype(np.float32), self.score
            scores[self.score] = merit
        order = np.lexsort((np.arange(len(pool)), -merit, broken))
        kept = np.zeros(len(pool), bool)
        kept[order[:keep]] = True
        passed, last = int((broken == 0).sum()), merit[order[keep - 1]]
        reasons = []
        for number in range(len(pool)):
            if broken[number] == 0:
                verdict = f"passes, like {passed} in all, of which {keep} are kept"
                verdict += f": {what} {merit[number]:.3g}, cut at {last:.3g}" if passed > keep else ""
                verdict = verdict if passed >= keep else f"passes, like {passed} in all"
            else:
                back = f"; taken back, as only {passed} pass and {keep} are kept" if kept[number] else ""
                verdict = basic.told(rules, number) + back
            reasons.append(verdict)
        return Selection(np.flatnonzero(kept), reasons, scores, -np.argsort(order))


def _read(vocabulary: str | Sequence[str]) -> list[str]:
    """In lower case, each once."""
    if isinstance(vocabulary, str):
        file = Path(vocabulary).expanduser()
        if not file.is_file():
            raise ValueError(f"selector.vocabulary={vocabulary}: no such file; give one with a word or phrase a line")
        vocabulary = file.read_text(encoding="utf-8").splitlines()
    found = list(dict.fromkeys(word.strip().lower() for word in vocabulary if word.strip()))
    if not found:
        raise ValueError("selector.vocabulary is empty; give words, a file of them, or null")
    return found
