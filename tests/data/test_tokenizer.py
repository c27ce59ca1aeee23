import hashlib
import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tldr.data.tokenizer import SPECIAL, Tokenizer

COLOURS, SHAPES = ("red", "green", "blue", "turquoise"), ("circle", "square", "triangle", "heart")
CORPUS = [f"a {c} {s} above a large {d}, {t}." for c in COLOURS for d in COLOURS for s in SHAPES for t in SHAPES]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.learn(CORPUS, vocab_size=100)


def test_learning_does_not_depend_on_the_order(tokenizer):
    for seed in range(3):
        corpus = list(CORPUS)
        random.Random(seed).shuffle(corpus)
        assert Tokenizer.learn(iter(corpus), vocab_size=100).json == tokenizer.json


def test_nor_on_the_process(tokenizer):
    script = (
        "import hashlib, sys; from test_tokenizer import CORPUS; from tldr.data.tokenizer import Tokenizer;"
        "corpus = list(set(CORPUS));"  # in the order of the hashes
        "print(hashlib.sha256(Tokenizer.learn(corpus, vocab_size=100).json.encode()).hexdigest())"
    )
    path = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == hashlib.sha256(tokenizer.json.encode()).hexdigest()


def test_captions_come_back(tokenizer):
    texts = [CORPUS[0], CORPUS[-1], "a heart", "blue", "square, circle. a red heart"]
    tokens, mask = tokenizer(texts, max_length=60)
    assert tokenizer.decode(tokens.tolist()) == texts
    assert tokenizer.decode([row[m].tolist() for row, m in zip(tokens, mask, strict=True)]) == texts
    assert tokenizer.decode(tokenizer(["A RED Heart"], max_length=60)[0].tolist()) == ["a red heart"]


def test_a_row_is_start_text_end_and_pads(tokenizer):
    tokens, mask = tokenizer(["a red circle above a large blue, heart.", "a heart"], max_length=60)
    assert tokens.dtype == torch.int64
    assert mask.dtype == torch.bool
    for row, real in zip(tokens, mask, strict=True):
        length = int(real.sum())
        assert real[:length].all()
        assert row[0] == tokenizer.cls
        assert row[length - 1] == tokenizer.sep == tokenizer.end
        assert (row[length:] == tokenizer.pad).all()
    assert mask[0].all()  # no wider than the longest
    assert not mask[1].all()
    started, _ = tokenizer(["a heart"], max_length=60, start=tokenizer.dec)
    assert started[0, 0] == tokenizer.dec
    assert torch.equal(started[0, 1:], tokens[1, 1 : started.shape[1]])


def test_what_is_too_long_is_cut_and_ends_all_the_same(tokenizer):
    long = ("a red circle above a large blue heart, " * 300)[:10_000]
    whole, _ = tokenizer([long], max_length=100_000)
    tokens, mask = tokenizer([long, "a heart"], max_length=16)
    assert tokens.shape == (2, 16)
    assert whole.shape[1] > 1000
    assert torch.equal(tokens[0, :15], whole[0, :15])
    assert tokens[0, -1] == tokenizer.sep
    assert mask[0].all()
    exact, _ = tokenizer([long[:23]], max_length=60)
    again, _ = tokenizer([long[:23]], max_length=exact.shape[1])
    assert torch.equal(again, exact)


def test_no_text_and_no_texts(tokenizer):
    tokens, mask = tokenizer([], max_length=9)
    assert tokens.shape == mask.shape == (0, 0)
    assert tokenizer.decode([]) == []
    assert tokenizer([""], max_length=9)[0].tolist() == [[tokenizer.cls, tokenizer.sep]]


def test_what_was_never_seen_is_unknown(tokenizer):
    tokens, _ = tokenizer(["a 犬 heart", "🏖"], max_length=60)
    assert [int((row == tokenizer.unk).sum()) for row in tokens] == [1, 1]
    assert tokenizer.decode(tokens.tolist())[0].split() == ["a", "heart"]


def test_hostile_captions_are_text(tokenizer, hostile):
    tokens, mask = tokenizer([hostile], max_length=30)
    assert mask.all()
    assert 3 <= tokens.shape[1] <= 30
    assert not (set(tokens[0, 1:-1].tolist()) & {tokenizer.pad, tokenizer.sep, tokenizer.cls, tokenizer.dec})


@pytest.mark.parametrize("special", SPECIAL)
def test_a_caption_cannot_say_special_tokens(special):
    """Else "[PAD]" would hide a word of the batch and "[SEP]" end the caption."""
    tokenizer = Tokenizer.learn([f"a {special} heart"] * 4)
    plain, mask = tokenizer([f"a {special} heart", "a"], max_length=60)
    assert mask[0].all()
    body = plain[0, 1:-1].tolist()
    assert tokenizer._tokenizer.token_to_id(special) not in body
    assert tokenizer.decode([body]) == [f"a {special.lower()} heart"]


def test_specials_have_places_of_their_own(tokenizer):
    ids = [tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.enc, tokenizer.dec]
    assert sorted(ids) == list(range(7))
    assert len(Tokenizer.learn([])) == 7 + 26 + 10 + 32  # it can spell


def test_the_vocabulary_is_as_small_as_asked_or_smaller(tokenizer):
    assert len(tokenizer) == 100
    large = Tokenizer.learn(CORPUS, vocab_size=8192)
    assert len(large) < 300
    assert large(["turquoise"], max_length=9)[0].shape == (1, 3)  # a whole word


def test_what_no_caption_has_is_spelt(tokenizer):
    """A tokenizer learned from captions reads the questions of a later task."""
    question = "how many j-shaped objects, 7 or 9?"
    tokens, _ = Tokenizer.learn(["a red disc"])([question], max_length=60)
    assert tokenizer.unk not in tokens
    assert Tokenizer.learn(["a red disc"]).decode(tokens.tolist()) == [question]


def old_way(captions, vocab_size=8192) -> str:
    """Learning with every character that there is, as long as they are few."""
    tokenizer = HubTokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=[*string.ascii_lowercase, *string.digits, *string.punctuation],
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return Tokenizer(tokenizer.to_str()).json


def test_ordinary_captions_give_what_they_always_gave(all_hostile):
    """Few hundred characters: accents, ligatures, capitals that grow in lower case, Hangul that falls apart, CJK."""
    letters = [chr(code) for code in (*range(1, 0x250), *range(0x390, 0x450), 0x130, 0xFB01, 0xAC01, 0x72AC, 0x2581)]
    texts = [f"{letter}{other} {letter}" for letter, other in zip(letters, letters[7:] + letters[:7], strict=True)]
    for corpus in ([], [""], [" "], ["\u200b"], CORPUS, [*CORPUS, *all_hostile * 3], [*CORPUS, *texts]):
        assert Tokenizer.learn(corpus).json == old_way(corpus)
    assert Tokenizer.learn(CORPUS, vocab_size=100).json == old_way(CORPUS, vocab_size=100)


def test_more_characters_than_pieces_leave_room_for_words():
    """A web-scale pool in many languages: the frequent characters stay, ties go by the character."""
    rare = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    corpus = [*CORPUS * 3, *rare, *("\u72ac \u732b" for _ in range(5))]
    learned = Tokenizer.learn(corpus, vocab_size=1200)
    pieces = json.loads(learned.json)["model"]["vocab"]
    assert len(learned) == len(pieces) <= 1200
    assert {"\u2581turquoise", "\u2581square", "\u72ac", "\u732b"} <= pieces.keys()
    one = {piece for piece in pieces if len(piece) == 1}
    assert len(one) == 1000
    kept = [character for character in rare if character in one]
    assert kept == rare[: len(kept)]
    random.Random(0).shuffle(corpus)
    assert Tokenizer.learn(iter(corpus), vocab_size=1200).json == learned.json

    texts = [f"a {rare[-1]} heart", "\u72ac", rare[-2]]
    tokens, _ = learned(texts, max_length=60)
    assert [int((row == learned.unk).sum()) for row in tokens] == [1, 0, 1]
    assert learned.decode(tokens.tolist())[0].split() == ["a", "heart"]


def test_the_alphabet_keeps_within_a_small_vocabulary():
    rare = [chr(code) for code in range(0x4E00, 0x4E00 + 300)]
    assert len(Tokenizer.learn([*CORPUS, *rare], vocab_size=100)) == 100
    spelt = Tokenizer.learn([*CORPUS, *rare], vocab_size=10)
    assert len(spelt) == 7 + 26 + 10 + 32 + 1  # what it needs to spell, and the mark of a word
    assert spelt.unk not in spelt([CORPUS[0]], max_length=60)[0]


def test_json_holds_it_whole(tokenizer):
    again = Tokenizer(tokenizer.json)
    assert again.json == tokenizer.json
    texts = [CORPUS[3], "a 犬 [PAD]"]
    assert torch.equal(again(texts, max_length=60)[0], tokenizer(texts, max_length=60)[0])


@pytest.fixture
def bert(tmp_path) -> Path:
    """A folder as BERT's: WordPiece, without BLIP's two tokens, with truncation and padding of its own."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "heart", "##s"]
    hub = HubTokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    hub.normalizer = normalizers.BertNormalizer(lowercase=True)
    hub.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    hub.enable_padding(length=50)
    hub.enable_truncation(4)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=hub, **special)
    fast.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_published_tokenizer_gains_the_two_tokens_it_lacks(bert):
    tokenizer = Tokenizer.pretrained(str(bert))
    assert (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 1, 2, 3, 4)
    assert (tokenizer.dec, tokenizer.enc) == (9, 10)  # in BLIP's order: 30522 and 30523 after BERT's
    assert len(tokenizer) == 11
    tokens, mask = tokenizer(["A red heart red hearts", "dog"], max_length=20)
    assert tokens.tolist() == [[2, 5, 6, 7, 6, 7, 8, 3], [2, 1, 3, 0, 0, 0, 0, 0]]
    assert torch.equal(mask, tokens != 0)
    again = Tokenizer(tokenizer.json)
    assert (again.enc, again.dec, len(again)) == (tokenizer.enc, tokenizer.dec, 11)


def test_words_number_the_tokens(bert):
    """Pieces of a word have one number; special tokens and pads none; what is cut off is cut off here too."""
    tokenizer = Tokenizer.pretrained(str(bert))
    texts = ["A red heart red hearts", "dog"]
    assert tokenizer.words(texts, max_length=20).tolist() == [[-1, 0, 1, 2, 3, 4, 4, -1], [-1, 0, *[-1] * 6]]
    assert tokenizer.words(texts, max_length=7).tolist() == [[-1, 0, 1, 2, 3, 4, -1], [-1, 0, *[-1] * 5]]
    assert tokenizer.words([], max_length=7).shape == (0, 0)


@pytest.mark.parametrize("max_length", [5, 60])
def test_words_are_aligned_with_tokens(tokenizer, hostile, max_length):
    texts = [CORPUS[0], "a turquoises heart", hostile, ""]
    tokens, mask = tokenizer(texts, max_length=max_length)
    words = tokenizer.words(texts, max_length=max_length)
    assert words.dtype == torch.int64
    assert words.shape == tokens.shape
    special = (tokens == tokenizer.cls) | (tokens == tokenizer.sep)
    assert torch.equal(words >= 0, mask & ~special)
    for row in words.tolist():
        numbers = [number for number in row if number >= 0]
        assert numbers == sorted(numbers)
    pieces = tokenizer(["turquoises"], max_length=60)[0].shape[1] - 2
    assert pieces > 1
    assert (tokenizer.words(["turquoises"], max_length=60)[0, 1:-1] == 0).all()


@pytest.fixture
def clip() -> Tokenizer:
    """CLIP's kind: byte pairs, two special tokens, of which the end also pads."""
    letters = [chr(i) for i in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    hub = HubTokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [("r", "e"), ("re", "d</w>")], end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )
    )  # fmt: skip
    hub.normalizer = normalizers.Lowercase()
    hub.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    hub.decoder = decoders.ByteLevel()
    hub.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return Tokenizer(hub.to_str())


def test_clips_tokens_keep_their_roles(clip):
    assert len(clip) == 2 * 94 + 4  # none is added: the published embeddings have no rows for more
    assert (clip.cls, clip.sep, clip.end, clip.pad) == (190, 191, 191, 191)
    texts = ["a red rex", "red"]
    tokens, mask = clip(texts, max_length=20)
    assert mask.sum(1).tolist() == [6, 3]
    assert tokens[1].tolist() == [190, 189, *[191] * 4]
    assert mask[1].tolist() == [True] * 3 + [False] * 3  # the end is real once
    assert clip.words(texts, max_length=20).tolist() == [[-1, 0, 1, 2, 2, -1], [-1, 0, -1, -1, -1, -1]]
    assert clip.decode(tokens.tolist()) == texts
    assert clip.json == Tokenizer(clip.json).json


def test_clips_end_cannot_be_said(clip):
    tokens, mask = clip(["a <|endoftext|> red <|startoftext|>"], max_length=60)
    assert mask.all()
    assert not {clip.cls, clip.end} & set(tokens[0, 1:-1].tolist())


@pytest.mark.parametrize("role", ["mask", "enc", "dec"])
def test_clip_has_no_tokens_for_other_roles(clip, role):
    with pytest.raises(ValueError, match=rf"CLIP's tokenizer has no \[{role.upper()}\]"):
        getattr(clip, role)
