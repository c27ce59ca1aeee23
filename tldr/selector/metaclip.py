"""MetaCLIP (Xu et al. 2023, arXiv 2309.16671, section 3 and algorithm 1): balance the pool over what captions speak of.

Entries, words and phrases, are looked for in the captions (`tldr.data.phrases`). An entry found in c_e captions fires
in each of them with probability p_e = t / max(c_e, t), so that about t of its captions are kept for its sake, and all
of those of a rarer entry. A pair is kept if any of its entries fires:

    P = 1 - prod_e (1 - p_e)

A pair without an entry is not kept. The source has 500,000 entries (WordNet, words, bigrams and titles of Wikipedia)
and t = 20,000, which leaves 400M pairs; here t is such that the expected number of pairs is the one to keep, and Pareto
sampling (Rosen 1997) keeps exactly that many, each with probability P, but for a small deviation that exactness costs.

Without a list, entries come from the captions as the source takes them from Wikipedia: words that are frequent enough,
and bigrams that occur together more often than chance has it.

Shapes: N pairs, M entries, m matches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tldr.data.phrases import Phrases, ids, parts, words
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, counts, inside
from tldr.signal.store import Signals


class MetaCLIP(Selector):
    """``entries``: words and phrases, or a file of them, one a line or a JSON list; None: learned from the captions.

    Learned are words that occur ``min_count`` times (the source's number for Wikipedia), or once in ``rows_per_count``
    pairs if that is less, but at least twice; and equally frequent bigrams whose normalised pointwise mutual
    information (1: never one without the other, 0: as by chance) is at least ``npmi``. The source asks for 30 bits,
    which only a corpus of Wikipedia's size can reach."""

    def __init__(
        self,
        *,
        entries: str | Sequence[str] | None = None,
        min_count: int = 100,
        rows_per_count: int = 10_000,
        npmi: float = 0.5,
    ) -> None:
        counts(1, min_count=min_count, rows_per_count=rows_per_count)
        inside("normalised pointwise mutual information", low=-1, npmi=npmi)
        self.entries = None if entries is None else _read(entries)
        self.min_count, self.rows_per_count, self.npmi = min_count, rows_per_count, npmi

    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """Match, find t, and draw."""
        at_least = min(self.min_count, max(2, len(pool) // self.rows_per_count))
        entries = self.entries or learn(pool.captions, at_least, self.npmi)
        row, entry = Phrases(entries).find(pool.captions)
        count = np.bincount(entry, minlength=len(entries))  # (M,)
        t, miss = threshold(row, count[entry], len(pool), keep)
        draw = np.random.default_rng(seed).uniform(1e-9, 1 - 1e-9, len(pool))
        chance = -np.expm1(miss)
        with np.errstate(divide="ignore"):  # P of 0 and of 1 stand behind and before all others
            strength = np.log(draw) - np.log1p(-draw) - np.log(chance) + miss
        order = np.lexsort((draw, strength))
        place = np.empty(len(pool), np.int64)
        place[order] = np.arange(len(pool))

        first = np.lexsort((entry, count[entry], row))  # every pair's rarest entry first
        have, start, number = np.unique(row[first], return_index=True, return_counts=True)
        reasons = [f"no entry in the caption; place {p + 1} in the draw, {keep} kept" for p in place]
        for r, e, n in zip(have, entry[first][start], number, strict=True):
            reasons[r] = (
                f"probability {chance[r]:.3g} at t={t:.4g} by {n} entries, the rarest {entries[e]!r} of {count[e]} "
                f"captions; place {place[r] + 1} in the draw, {keep} kept"
            )
        return Selection(np.sort(order[:keep]), reasons, {"probability": chance, "draw": draw})


def threshold(row: np.ndarray, count: np.ndarray, pairs: int, keep: int) -> tuple[float, np.ndarray]:
    """The t at which ``keep`` of so many ``pairs`` are expected, by bisection, and log(1 - P) (N,) of every pair, from
    the matches: their ``row`` (m,), sorted, and the ``count`` (m,) of their entry. The highest count where fewer than
    ``keep`` pairs have an entry: all of these are kept."""
    miss = np.zeros(pairs)
    if not len(row):
        return 0.0, miss
    have, start = np.unique(row, return_index=True)

    def missed(t: float) -> np.ndarray:
        with np.errstate(divide="ignore"):  # log 0 where an entry always fires
            return np.add.reduceat(np.log1p(-np.minimum(t / count, 1)), start)

    low, high = 0.0, float(count.max())
    if len(have) > keep:
        for _ in range(60):  # halvings: more than a double tells apart
            middle = (low + high) / 2
            if -np.expm1(missed(middle)).sum() < keep:
                low = middle
            else:
                high = middle
    miss[have] = missed(high)
    return high, miss


def learn(captions: pa.ChunkedArray, at_least: int, npmi: float) -> list[str]:
    """Words in ``at_least`` places or more, sorted, and bigrams of them as frequent, of ``npmi`` at least; none without
    letter or digit. Raises ValueError where no word is so frequent."""
    counted = [pc.value_counts(words(part)[1]) for _, part in parts(captions)]
    table = pa.table(
        {
            "word": pa.chunked_array([each.field("values") for each in counted], pa.large_string()),
            "count": pa.chunked_array([each.field("counts") for each in counted], pa.int64()),
        }
    )
    table = table.group_by("word").aggregate([("count", "sum")]).sort_by("word")
    total = pc.sum(table["count_sum"]).as_py() or 0
    spoken = pc.match_substring_regex(table["word"], r"[\p{L}\p{N}]")
    table = table.filter(pc.and_(spoken, pc.greater_equal(table["count_sum"], at_least)))
    if not len(table):
        raise ValueError(
            f"no word occurs {at_least} times in the captions; give selector.entries, or lower selector.min_count"
        )
    vocabulary, single = table["word"].combine_chunks(), table["count_sum"].to_numpy()

    pairs = []  # of neighbours: first word times the size of the vocabulary, plus second
    for _, part in parts(captions):
        row, word = words(part)
        token = ids(word, vocabulary)
        beside = (row[1:] == row[:-1]) & (token[1:] >= 0) & (token[:-1] >= 0)
        pairs.append(np.unique(token[:-1][beside] * len(vocabulary) + token[1:][beside], return_counts=True))
    both, inverse = np.unique(np.concatenate([each for each, _ in pairs]), return_inverse=True)
    count = np.bincount(inverse, np.concatenate([number for _, number in pairs]), len(both))
    both, count = both[count >= at_least], count[count >= at_least]
    one, other = both // len(vocabulary), both % len(vocabulary)
    information = np.log(count * total / (single[one] * single[other])) / np.maximum(-np.log(count / total), 1e-12)
    near = information >= npmi
    texts = vocabulary.to_pylist()
    return texts + [f"{texts[a]} {texts[b]}" for a, b in zip(one[near], other[near], strict=True)]


def _read(entries: str | Sequence[str]) -> list[str]:
    """Each once."""
    if isinstance(entries, str):
        file = Path(entries).expanduser()
        if not file.is_file():
            raise ValueError(f"selector.entries={entries}: no such file; give one with an entry a line, or a JSON list")
        text = file.read_text(encoding="utf-8")
        entries = json.loads(text) if file.suffix == ".json" else text.splitlines()
    found = list(dict.fromkeys(str(entry).strip() for entry in entries if str(entry).strip()))
    if not found:
        raise ValueError("selector.entries is empty; give words and phrases, a file of them, or null")
    return found
