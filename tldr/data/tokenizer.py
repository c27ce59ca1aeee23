"""Text to tokens: a byte-pair tokenizer learned from a pool's own captions, or a published one (BERT's).

Learning needs no download and keeps small vocabularies small. It is a function of the multiset of captions alone: byte
pairs over words marked by ``▁`` tie deterministically, which WordPiece's learner does not (its ``##`` pieces are
numbered in the order of a hash map). The special tokens are BERT's and BLIP's two: ``[DEC]`` begins a text to be
written, ``[ENC]`` one to be matched with a picture.

Shapes: B texts, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

PAD, UNK, CLS, SEP, MASK, ENC, DEC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[ENC]", "[DEC]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK, ENC, DEC)


class Tokenizer:
    """Texts to padded token tensors and back; ``json`` holds it whole, and travels in checkpoints."""

    def __init__(self, json: str) -> None:
        self.json = json
        self._tokenizer = tokenizers.Tokenizer.from_str(json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # a caption that says "[PAD]" or "[SEP]" has no say in the batch
        missing = [token for token in SPECIAL if self._tokenizer.token_to_id(token) is None]
        if missing:
            self._tokenizer.add_special_tokens(missing)
            self.json = self._tokenizer.to_str()
        ids: list[int] = [self._tokenizer.token_to_id(token) for token in SPECIAL]  # pyright: ignore
        self.pad, self.unk, self.cls, self.sep, self.mask, self.enc, self.dec = ids
        self.end = self.sep

    @classmethod
    def learn(cls, captions: Iterable[str], *, vocab_size: int = 8192) -> Tokenizer:
        """A lower-casing tokenizer of at most ``vocab_size`` pieces, learned from ``captions``."""
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def pretrained(cls, name: str) -> Tokenizer:
        """The tokenizer of a Hugging Face model (``bert-base-uncased``) or of a folder that holds one."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(name, use_fast=True).backend_tokenizer.to_str())

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __call__(
        self, texts: Sequence[str], *, max_length: int, start: int | None = None, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Texts -> (B, T) int64 tokens ``start text [SEP] [PAD]...`` and their (B, T) bool mask.

        ``start`` is ``[CLS]`` unless given. A longer text is cut to ``max_length`` tokens and keeps its ``[SEP]``.
        """
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        first = self.cls if start is None else start
        rows = [[first, *item.ids[: max_length - 2], self.sep] for item in encoded]
        tokens = torch.full((len(rows), max(map(len, rows), default=0)), self.pad, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        tokens = tokens.to(device)
        return tokens, tokens != self.pad

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Token rows -> texts, without special tokens."""
        return self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
