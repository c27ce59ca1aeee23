"""Text to tokens: a byte-pair tokenizer learned from a pool's own captions, or a published one (BERT's, CLIP's).

Learning needs no download and keeps small vocabularies small. It is a function of the multiset of captions alone: byte
pairs over words marked by ``▁`` tie deterministically, which WordPiece's learner does not (its ``##`` pieces are
numbered in the order of a hash map). The special tokens are BERT's and BLIP's two: ``[DEC]`` begins a text to be
written, ``[ENC]`` one to be matched with a picture. CLIP's tokenizers have two of their own instead: one begins a text,
the other ends it and fills the row, so that the mask is known from the lengths alone.

Shapes: B texts, T tokens of the longest.
"""

from __future__ import annotations

import json as json_text
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

PAD, UNK, CLS, SEP, MASK, ENC, DEC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[ENC]", "[DEC]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK, ENC, DEC)
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"

_SPELT = (*string.ascii_lowercase, *string.digits, *string.punctuation)  # whether or not a caption has it
_CHARACTERS = 1000  # BERT's too; the web's captions hold tens of thousands, which would leave no place for words


class Tokenizer:
    """Texts to padded token tensors and back; ``json`` holds it whole, and travels in checkpoints.

    A tokenizer that is not CLIP's gains the special tokens that it lacks, in the order of BLIP: after BERT's 30,522
    ``[DEC]`` is 30522 and ``[ENC]`` 30523. CLIP's gains none, and to ask it for ``mask``, ``enc`` or ``dec`` is a
    ValueError.
    """

    def __init__(self, json: str) -> None:
        self.json = json
        self._tokenizer = tokenizers.Tokenizer.from_str(json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # a caption that says "[PAD]" or "[SEP]" has no say in the batch
        self.is_clip = self._id(CLIP_START) is not None and self._id(CLS) is None
        if self.is_clip:
            names = (CLIP_END, CLIP_END, CLIP_START, CLIP_END)
        else:
            names = (PAD, UNK, CLS, SEP)
            missing = [token for token in (*names, MASK, DEC, ENC) if self._id(token) is None]
            if missing:
                self._tokenizer.add_special_tokens(missing)
                self.json = self._tokenizer.to_str()
        self._names = names
        self.pad, self.unk, self.cls, self.sep = (self._role(name) for name in names)
        self.end = self.sep
        # What a byte-pair model puts after each word, and its decoder leaves there.
        self._suffix: str = json_text.loads(self.json)["model"].get("end_of_word_suffix") or ""

    def _id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def _role(self, token: str) -> int:
        found = self._id(token)
        if found is None:
            raise ValueError(
                f"CLIP's tokenizer has no {token}; a model that masks, matches or writes text needs BERT's"
            )
        return found

    @property
    def mask(self) -> int:
        """The token that hides a word."""
        return self._role(MASK)

    @property
    def enc(self) -> int:
        """The token that begins a text to be matched with a picture."""
        return self._role(ENC)

    @property
    def dec(self) -> int:
        """The token that begins a text to be written."""
        return self._role(DEC)

    @classmethod
    def learn(cls, captions: Iterable[str], *, vocab_size: int = 8192) -> Tokenizer:
        """A lower-casing tokenizer of at most ``vocab_size`` pieces, learned from ``captions``; but always with the
        pieces to spell any ASCII text, also characters that no caption has: a later task's questions are texts too.

        Of the other characters it has the most frequent, 1,000 including ASCII's; the rest become ``[UNK]``."""
        captions = list(captions)
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=UNK))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        tokenizer.decoder = decoders.Metaspace()
        alphabet = _alphabet(captions, tokenizer.normalizer, min(_CHARACTERS, vocab_size - len(SPECIAL)))
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),  # else the trainer orders equally frequent ones by its hash map
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def pretrained(cls, name: str) -> Tokenizer:
        """The tokenizer of a Hugging Face model (``bert-base-uncased``) or of a folder that holds one."""
        from transformers import AutoTokenizer

        return cls(
            AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False).backend_tokenizer.to_str()
        )

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
        tokens = _pad(rows, self.pad).to(device)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long, device=device)
        return tokens, torch.arange(tokens.shape[1], device=device) < lengths[:, None]

    def words(self, texts: Sequence[str], *, max_length: int) -> Tensor:
        """(B, T) int64, for each token of ``self(texts, max_length=max_length)`` the number of its word in the text.

        The first word is 0; special tokens and pads have -1. Pieces of one word are neighbours with one number.
        """
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = [[-1 if word is None else word for word in item.word_ids[: max_length - 2]] for item in encoded]
        return _pad([[-1, *row, -1] for row in rows], -1)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Token rows -> texts, without special tokens."""
        texts = self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        return [text.replace(self._suffix, " ").strip() for text in texts] if self._suffix else texts

    def save(self, folder: str | Path, *, max_length: int | None = None) -> None:
        """Write ``folder``'s tokenizer files, as Hugging Face's ``AutoTokenizer`` reads them.

        There ``tokenizer(text)`` begins and ends a text as this one does; ``max_length`` is what it cuts to on request.
        """
        from transformers import PreTrainedTokenizerFast

        copy = tokenizers.Tokenizer.from_str(self.json)
        pad, unk, cls, sep = self._names
        copy.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, self.cls), (sep, self.sep)],
        )
        if self.is_clip:
            roles = {"bos_token": cls, "eos_token": sep}
        else:
            roles = {"cls_token": cls, "sep_token": sep, "mask_token": MASK, "bos_token": DEC}
            roles["additional_special_tokens"] = [ENC]  # pyright: ignore[reportArgumentType]
        if max_length is not None:
            roles["model_max_length"] = max_length  # pyright: ignore[reportArgumentType]
        fast = PreTrainedTokenizerFast(tokenizer_object=copy, pad_token=pad, unk_token=unk, **roles)
        fast.save_pretrained(str(folder))
        if self.is_clip:  # this class knows how to take the word's end out of what it decodes
            config = Path(folder) / "tokenizer_config.json"
            settings = json_text.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": "CLIPTokenizer"}
            config.write_text(json_text.dumps(settings, indent=2), encoding="utf-8")


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of numbers -> (B, T) of the longest, ``value`` at the ends of the others."""
    padded = torch.full((len(rows), max(map(len, rows), default=0)), value, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded


def _alphabet(captions: Iterable[str], normalizer: normalizers.Normalizer, size: int) -> list[str]:
    """ASCII, the word mark where there is a word, and the most frequent of the captions' other characters: ``size`` in
    all, if that is enough for the first two."""
    found, counts = Counter(), Counter()
    for caption in captions:
        found.update(caption)
    for raw, count in found.items():  # the normaliser looks at one character at a time: these are few
        for character in normalizer.normalize_str(raw):
            counts[character] += count
    spelt = [*_SPELT, *(["\u2581"] if counts else [])]
    others = sorted(counts.keys() - {*spelt, " "}, key=lambda character: (-counts[character], character))
    return spelt + others[: max(0, size - len(spelt))]
