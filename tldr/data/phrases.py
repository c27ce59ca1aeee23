"""The words of captions, and which phrases of a list occur in them, whole columns at a time.

A phrase occurs where its words follow each other; a word ends at white space, and each of , . ; : ? ! ` is a word of
its own, as in MetaCLIP's (Xu et al. 2023, arXiv 2309.16671) search for substrings between spaces. The phrases form a
trie of words, which all positions of all captions descend at once, a word at every step; only those that still match a
phrase continue. So the time hardly depends on the number of phrases.

Shapes: N captions, n words in them, M phrases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CAPTIONS = 65_536  # whose words are in memory at once


def words(captions: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """The caption (n,) int64 and the text (n,) of every word, in the order of the captions."""
    spaced = pc.replace_substring_regex(captions, r"([,.;:?!`])", r" \1 ")
    lists = pc.utf8_split_whitespace(spaced)
    row, word = pc.list_parent_indices(lists), pc.list_flatten(lists)
    told = pc.not_equal(word, "")  # what stands before the first blank and behind the last
    return row.filter(told).to_numpy(zero_copy_only=False).astype(np.int64), word.filter(told)


def parts(captions: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    """At most `CAPTIONS` captions at a time, with the row of the first."""
    for start in range(0, len(captions), CAPTIONS):
        yield start, captions.slice(start, CAPTIONS).combine_chunks()


def ids(word: pa.Array, vocabulary: pa.Array) -> np.ndarray:
    """(n,) int64: the place of every word in the vocabulary, -1 for others."""
    return pc.fill_null(pc.index_in(word, vocabulary), -1).to_numpy(zero_copy_only=False).astype(np.int64)


class Phrases:
    """Looks for the M ``phrases``, which should differ. One without a word occurs nowhere."""

    def __init__(self, phrases: Sequence[str]) -> None:
        phrase, word = words(pa.array(phrases, pa.large_string()))
        self.vocabulary, self.count = pc.unique(word), len(phrases)
        token, length = ids(word, self.vocabulary), np.bincount(phrase, minlength=self.count)
        start = np.cumsum(length) - length
        # A node is named by a number, the root by 0; ``levels[d]`` has the edges from depth d, sorted by node and word,
        # and the number of the first node that they lead to. ``ends`` says which phrase ends at a node.
        self.levels: list[tuple[np.ndarray, int]] = []
        node, ends, base = np.zeros(self.count, np.int64), [np.full(1, -1)], 1
        alive = np.flatnonzero(length)
        for depth in range(int(length.max(initial=0))):
            edges, place = np.unique(self._edge(node[alive], token[start[alive] + depth]), return_inverse=True)
            node[alive] = base + place
            self.levels.append((edges, base))
            here = np.full(len(edges), -1)
            done = length[alive] == depth + 1
            here[place[done]] = alive[done]
            ends.append(here)
            base, alive = base + len(edges), alive[~done]
        self.ends = np.concatenate(ends)

    def _edge(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        return node * len(self.vocabulary) + token

    def find(self, captions: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Where they occur: captions (m,) and phrases (m,) int64, each pair once, sorted."""
        found = [self._find(part) + start * self.count for start, part in parts(captions)]
        both = np.concatenate(found) if found else np.empty(0, np.int64)
        return both // max(1, self.count), both % max(1, self.count)

    def _find(self, captions: pa.Array) -> np.ndarray:
        """(m,) sorted: caption times M, plus phrase."""
        row, word = words(captions)
        token = ids(word, self.vocabulary)
        at, node = np.arange(len(token)), np.zeros(len(token), np.int64)
        found = [np.empty(0, np.int64)]
        for depth, (edges, base) in enumerate(self.levels):
            inside = at + depth < len(token)
            at, node = at[inside], node[inside]
            here = at + depth
            same = (row[here] == row[at]) & (token[here] >= 0)
            at, node, here = at[same], node[same], here[same]
            edge = self._edge(node, token[here])
            place = np.minimum(np.searchsorted(edges, edge), len(edges) - 1)
            leads = edges[place] == edge
            at, node = at[leads], base + place[leads]
            ends = self.ends[node]
            found.append(row[at[ends >= 0]] * self.count + ends[ends >= 0])
        return np.unique(np.concatenate(found))
