"""Sieve (Mahmoud et al. 2024, arXiv 2310.02110, section 3): keep the pairs whose caption says what a captioner says of
the picture.

The source's captioner was trained on cleaner data than the pool. Ours is the main scorer: give it as ``checkpoint=``,
else it is trained on the noisy pool itself. It draws several captions; the score is the highest similarity of any of
them to the pair's own caption. Phrases about the medium (*a photo of*) are removed from both first, at word boundaries.
The score may be combined with the CLIP score, each scaled to [0, 1] by its lowest and highest value in the pool.

Similarity is the cosine of a sentence encoder's embeddings; the source has all-MiniLM-L6-v2 (mean of the tokens).
Without one it is that of TF-IDF vectors of words and bigrams, which sees the same words and no synonyms.

Shapes: N pairs, D captions drawn for each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from tldr.data.phrases import CAPTIONS, ids, parts, words
from tldr.ledger import Meter, metered
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, best, counts, inside
from tldr.signal.store import Signals

MEDIUM = ("an image of", "a photo of", "stock photo", "photo stock", "a photo", "an image", "image", "photo")


class Writer(Protocol):
    """Writes captions: the task's captioner."""

    def write(self, pairs: Pairs, *, draw: int = 0) -> list[str]:
        """A caption for each pair's picture; another ``draw`` may give other captions."""
        ...

    @property
    def varies(self) -> bool:
        """Does another ``draw`` give other captions? Not with beam search."""
        ...


class Sieve(Selector):
    """``draws`` captions of the main scorer for every pair, or those in the pool's column ``captions``, one or a list
    each; ``sentence_encoder``: a transformers checkpoint, folder or id (None: TF-IDF), which reads ``batch_size`` texts
    at once; ``medium``: phrases to remove (None: the source's); ``clip_weight``, in [0, 1]: the weight in the sum of
    the CLIP score of ``scorer``; the source has 0 and 0.5."""

    def __init__(
        self,
        *,
        draws: int = 8,
        captions: str | None = None,
        sentence_encoder: str | None = None,
        batch_size: int = 256,
        medium: Sequence[str] | None = None,
        clip_weight: float = 0.0,
        scorer: str = "clip",
    ) -> None:
        counts(1, draws=draws, batch_size=batch_size)
        inside("a share of the sum", clip_weight=clip_weight)
        if isinstance(medium, str):
            raise ValueError(
                f"selector.medium={medium!r} is one text; it is a list of phrases: selector.medium=['{medium}']"
            )
        self.draws, self.captions, self.sentence_encoder, self.batch_size = (
            draws,
            captions,
            sentence_encoder,
            batch_size,
        )
        phrases = MEDIUM if medium is None else medium
        self.medium = rf"(?i)\b(?:{'|'.join(map(re.escape, phrases))})\b" if phrases else None
        self.clip_weight, self.signal = clip_weight, f"{scorer}.alignment"
        self.needs = (self.signal,) if clip_weight else ()
        self.needs_writer = captions is None

    def check(self, pool: Pairs) -> None:
        """Raises ValueError where the pool has no such column of captions, or one that holds no text, and where the
        sentence encoder is none."""
        super().check(pool)
        if self.sentence_encoder is not None:
            _read_checkpoint("AutoConfig", self.sentence_encoder)  # the rest when it is wanted
        if self.captions is not None:
            self._read(pool)

    def choose(
        self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, writer: Writer | None = None
    ) -> Selection:
        """Have captions written, compare, and keep the top."""
        if self.captions is None:
            assert writer is not None
            if self.draws > 1 and not writer.varies:
                raise ValueError(
                    f"selector.draws={self.draws}, but only generation.strategy=nucleus draws; with any other, "
                    "all captions of a picture are the same: set selector.draws=1"
                )
            drawn = [pa.array(writer.write(pool, draw=draw), pa.large_string()) for draw in range(self.draws)]
            row = np.tile(np.arange(len(pool)), self.draws)
            text = pa.concat_arrays(drawn)
        else:
            row, text = self._read(pool)
        found, plain = self.strip(pool.captions.combine_chunks()), self.strip(text)
        if self.sentence_encoder is None:
            cosine = tf_idf(found, plain, row)
        else:
            encoder = SentenceEncoder(self.sentence_encoder, self.batch_size, self.device)
            one = encoder(found)
            # As many texts at once as there are captions, for memory's sake.
            slices = [slice(start, start + len(pool)) for start in range(0, len(row), len(pool))]
            each = [np.einsum("ne,ne->n", one[row[part]], encoder(plain[part])) for part in slices]
            cosine = np.concatenate([np.empty(0), *each])
        cosine[pc.equal(plain, "").to_numpy(zero_copy_only=False)] = 0  # nothing was said

        order = np.lexsort((-cosine, row))
        have, start = np.unique(row[order], return_index=True)
        chosen = np.full(len(pool), -1)
        chosen[have] = order[start]
        score = np.zeros(len(pool), np.float32)
        score[have] = cosine[order[start]]
        merit, scores, fused = score, {"sieve": score}, [""] * len(pool)
        if self.clip_weight:
            assert signals is not None
            clip = signals[self.signal].read().astype(np.float32)
            merit = (1 - self.clip_weight) * scaled(score) + self.clip_weight * scaled(clip)
            scores |= {self.signal: clip, "fused": merit}
            fused = [f", with CLIP score {c:.3g} {m:.3g}" for c, m in zip(clip, merit, strict=True)]
        rows, cut = best(merit, keep)
        said = text.take(pa.array(np.maximum(chosen, 0))).to_pylist() if len(text) else [""] * len(pool)
        reasons = [
            (f"similarity {s:.3g} to {told!r}" if c >= 0 else "nothing was written") + f"{more}, cut at {cut:.3g}"
            for s, told, c, more in zip(score, said, chosen, fused, strict=True)
        ]
        return Selection(rows, reasons, scores, merit)

    def strip(self, text: pa.Array) -> pa.Array:
        """Without phrases of the medium, in lower case, and without blanks at the ends."""
        if self.medium is not None:
            text = pc.replace_substring_regex(text, self.medium, "")
        return pc.utf8_trim_whitespace(pc.utf8_lower(text))

    def _read(self, pool: Pairs) -> tuple[np.ndarray, pa.Array]:
        """The row (n,) and text (n,) of every caption in the column."""
        assert self.captions is not None
        names = pool.table.column_names
        if self.captions not in names:
            raise ValueError(
                f"selector.captions={self.captions}: the pool has no such column; it has {', '.join(names)}; "
                "selector.captions=null has the captioner write them"
            )
        column = pool.table[self.captions].combine_chunks()
        column = column if isinstance(column, pa.Array) else column.chunk(0)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            row, text = pc.list_parent_indices(column), pc.list_flatten(column)
        else:
            row, text = pa.array(np.arange(len(column))), column
        if not (pa.types.is_string(text.type) or pa.types.is_large_string(text.type)):
            raise ValueError(f"selector.captions={self.captions} holds {text.type}, not texts or lists of texts")
        told = pc.is_valid(text)
        return row.filter(told).to_numpy(zero_copy_only=False), text.filter(told).cast(pa.large_string())


def scaled(values: np.ndarray) -> np.ndarray:
    """(N,) brought to [0, 1] by the lowest and the highest; 0 where all are equal."""
    width = values.max() - values.min()
    return (values - values.min()) / (width if width != 0 else 1)


def tf_idf(found: pa.Array, text: pa.Array, row: np.ndarray) -> np.ndarray:
    """(n,) cosine of each ``text`` (n,) with the caption ``found`` (N,) at its ``row`` (n,), over words and bigrams:
    their counts, times log((1 + N) / (1 + df)) + 1 if df of the captions have them. Texts are compared a few at a time;
    only the document frequencies are known for all."""
    counts = Frequencies(found)
    blocks = [slice(start, start + CAPTIONS) for start in range(0, len(row), CAPTIONS)]
    cosines = [counts.cosine(found.take(pa.array(row[block])), text[block]) for block in blocks]
    return np.concatenate([np.empty(0), *cosines])


class Frequencies:
    """Document frequencies: how many of N ``texts`` have each word and each bigram."""

    def __init__(self, texts: pa.Array) -> None:
        self.texts, blocks = len(texts), [block for _, block in parts(pa.chunked_array([texts]))]
        heard = [pc.unique(words(block)[1]) for block in blocks]
        self.vocabulary = pc.unique(pa.concat_arrays([pa.array([], pa.large_string()), *heard]))
        self.term, self.frequency = np.empty(0, np.int64), np.empty(0, np.int64)
        fresh: list[tuple[np.ndarray, np.ndarray]] = []
        for number, block in enumerate(blocks, 1):
            at, word = words(block)
            _, term, _ = _terms(at, ids(word, self.vocabulary), self._size(self.vocabulary))
            fresh.append(np.unique(term, return_counts=True))
            # Seldom: to add a block to all costs as much as all.
            if number == len(blocks) or sum(len(term) for term, _ in fresh) > len(self.term):
                fresh.append((self.term, self.frequency))
                self.term, place = np.unique(np.concatenate([term for term, _ in fresh]), return_inverse=True)
                total = np.bincount(place, np.concatenate([count for _, count in fresh]), len(self.term))
                self.frequency, fresh = total.astype(np.int64), []

    def cosine(self, one: pa.Array, other: pa.Array) -> np.ndarray:
        """(n,) of the texts ``one`` (n,) and ``other`` (n,), each with its neighbour."""
        told = words(one), words(other)
        vocabulary = pc.unique(pa.concat_arrays([word for _, word in told]))  # some of them in none of the N
        known, size = ids(vocabulary, self.vocabulary), self._size(vocabulary)

        def side(at: np.ndarray, word: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            text, term, number = _terms(at, ids(word, vocabulary), size)
            weight = number * (np.log((1 + self.texts) / (1 + self._found(term, known, size))) + 1)
            length = np.sqrt(np.bincount(text, weight**2, len(one)))
            return text, term, weight / np.maximum(length[text], 1e-12)

        (text, term, mine), (text2, term2, theirs) = side(*told[0]), side(*told[1])
        keys = (text * size * (size + 1) + term, text2 * size * (size + 1) + term2)
        _, here, there = np.intersect1d(*keys, assume_unique=True, return_indices=True)
        return np.bincount(text[here], mine[here] * theirs[there], len(one))

    def _found(self, term: np.ndarray, known: np.ndarray, size: int) -> np.ndarray:
        """(n,) how many of the N texts have the ``term`` (n,) of a vocabulary whose words are ``known`` here as these,
        or as -1."""
        if not len(self.term):
            return np.zeros(len(term), np.int64)
        first, last = term // size - 1, known[term % size]  # of a word alone, first is -1
        before = np.where(first < 0, 0, known[first] + 1)
        here = before * self._size(self.vocabulary) + last
        place = np.minimum(np.searchsorted(self.term, here), len(self.term) - 1)
        strange = (last < 0) | ((first >= 0) & (before == 0)) | (self.term[place] != here)
        return np.where(strange, 0, self.frequency[place])

    @staticmethod
    def _size(vocabulary: pa.Array) -> int:
        return len(vocabulary) + 1  # of which bigrams are numbers with two digits


def _terms(at: np.ndarray, token: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words and bigrams of texts, sorted: text, term, how often. Term w is a word, (w + 1) ``size`` + v a bigram."""
    beside = np.flatnonzero(at[1:] == at[:-1])
    text = np.concatenate([at, at[beside]])
    term = np.concatenate([token, (token[beside] + 1) * size + token[beside + 1]])
    order = np.lexsort((term, text))
    text, term = text[order], term[order]
    new = np.flatnonzero(np.r_[True, (text[1:] != text[:-1]) | (term[1:] != term[:-1])][: len(text)])
    return text[new], term[new], np.diff(np.r_[new, len(text)])


def _read_checkpoint(kind: str, checkpoint: str) -> Any:
    """What a class of transformers finds there."""
    import transformers  # here: who compares by TF-IDF does not wait for it

    try:
        return getattr(transformers, kind).from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"selector.sentence_encoder={checkpoint} is no transformers checkpoint: {error}") from error


class SentenceEncoder:
    """A checkpoint of transformers, folder or id, as it compares texts: the mean of the last states over the tokens.
    Raises ValueError where it is none."""

    def __init__(self, checkpoint: str, batch_size: int, device: str = "cpu") -> None:
        self.tokenizer: Any = _read_checkpoint("AutoTokenizer", checkpoint)
        model: Any = _read_checkpoint("AutoModel", checkpoint)
        self.model, self.batch_size, self.device = model.to(device).eval(), batch_size, device

    @torch.inference_mode()
    def __call__(self, texts: pa.Array) -> np.ndarray:
        """(n, E) float32 unit vectors. Texts that recur are read once."""
        with metered(device=self.device) as meter:
            return self._read(texts, meter)

    def _read(self, texts: pa.Array, meter: Meter) -> np.ndarray:
        coded = texts.dictionary_encode()
        different = coded.dictionary.to_pylist()
        vectors = []
        for start in range(0, len(different), self.batch_size):
            batch = different[start : start + self.batch_size]
            inputs = self.tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self.device)
            mask = inputs["attention_mask"][..., None]
            with meter.batch(len(batch)):
                states = self.model(**inputs).last_hidden_state
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors.append(F.normalize(mean.float(), dim=-1).cpu().numpy())
        return np.concatenate(vectors)[coded.indices.to_numpy()]
