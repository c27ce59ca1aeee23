from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from tests.hub.conftest import SIZES, TEXTS, WORDS, save_bert_tokenizer, spread
from tldr.data.tokenizer import Tokenizer
from tldr.hub.checkpoint import export, initialise, read
from tldr.nn.text import TextTransformer

CONFIG = BertConfig(**SIZES, vocab_size=len(WORDS) + 2, max_position_embeddings=12)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bert"


def load(folder, **options) -> tuple[TextTransformer, list[str]]:
    weights = read(folder, "TextTransformer")
    model = TextTransformer(CONFIG.vocab_size, **weights.arguments["text"], **options)
    return model.eval(), initialise(model, weights)


@torch.no_grad()
def test_a_bert_computes_what_it_did(folder):
    theirs = spread(BertForPreTraining(CONFIG))
    theirs.save_pretrained(folder)
    fast = save_bert_tokenizer(folder)
    ours, rest = load(folder)
    assert rest == []
    batch = fast(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=True)
    tokens, mask = Tokenizer.pretrained(str(folder))(TEXTS, max_length=12)
    assert torch.equal(tokens, batch["input_ids"])
    hidden, real = ours(tokens, mask), mask.bool()
    expected = theirs.bert(**batch).last_hidden_state
    torch.testing.assert_close(hidden[real], expected[real], atol=1e-4, rtol=1e-4)
    scores = theirs(**batch).prediction_logits
    torch.testing.assert_close(ours.logits(hidden)[real], scores[real], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_and_there_again_after_export(folder, tmp_path):
    theirs = spread(BertForMaskedLM(CONFIG))
    theirs.save_pretrained(folder)
    ours, _ = load(folder)
    again = BertForMaskedLM.from_pretrained(export(ours, tmp_path / "out")).eval()
    tokens = torch.randint(0, len(WORDS), (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    once_more, _ = load(tmp_path / "out")
    for (name, tensor), other in zip(ours.state_dict().items(), once_more.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_a_bert_without_its_head_leaves_ours_alone(folder):
    spread(BertModel(CONFIG)).save_pretrained(folder)
    _, rest = load(folder)
    assert {name.partition(".")[0] for name in rest} == {"head", "head_bias"}


def test_both_roles_of_blip_begin_as_bert(folder):
    """And the two words that BERT lacks as [CLS]."""
    theirs = spread(BertForMaskedLM(BertConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=12)))
    theirs.save_pretrained(folder)
    save_bert_tokenizer(folder)
    weights = read(folder, "Blip")
    assert weights.tokenizer is not None
    tokenizer = Tokenizer(weights.tokenizer)
    assert (tokenizer.dec, tokenizer.enc) == (len(WORDS), len(WORDS) + 1)
    state, query = weights.state, theirs.bert.encoder.layer[1].attention.self.query.weight
    for name in ("attention", "decoder_attention"):
        assert torch.equal(state[f"encoders.text.layers.1.{name}.query.weight"], query)
        assert torch.equal(state[f"teacher.text.layers.1.{name}.query.weight"], query)
    words = state["encoders.text.words.weight"]
    assert words.shape == (len(tokenizer), 16)
    assert torch.equal(words[-2:], words[tokenizer.cls].expand(2, -1))
    captioner = read(folder, "Captioner").state
    assert torch.equal(captioner["decoder.layers.1.attention.query.weight"], query)
    assert not any("decoder_attention" in name for name in captioner)
    vilt = read(folder, "Vilt")
    assert vilt.arguments["text"]["depth"] == 0
    assert not any("layers" in name for name in vilt.state)


def test_the_names_of_the_first_checkpoints_are_known(folder):
    spread(BertForMaskedLM(CONFIG)).save_pretrained(folder)
    expected = read(folder, "TextTransformer").state
    state = BertForMaskedLM.from_pretrained(folder).state_dict()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    (folder / "model.safetensors").unlink()
    torch.save(old, folder / "pytorch_model.bin")
    found = read(folder, "TextTransformer").state
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_not_like_bert_is_not_exported(tmp_path):
    cases: list[dict[str, Any]] = [{"pre_norm": True}, {"embed_norm": False}, {"activation": "quick_gelu"}]
    for options in cases:
        model = TextTransformer(9, width=8, depth=1, heads=2, max_length=6, **options)
        with pytest.raises(ValueError, match="BERT"):
            export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_saved_tokenizer_is_opened_there(tmp_path):
    ours = Tokenizer.learn(TEXTS * 2, vocab_size=200)
    ours.save(tmp_path, max_length=12)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    batch = theirs(TEXTS, padding=True, return_tensors="pt")
    tokens, mask = ours(TEXTS, max_length=12)
    assert torch.equal(batch["input_ids"], tokens)
    assert torch.equal(batch["attention_mask"].bool(), mask)
    assert (theirs.mask_token_id, theirs.bos_token_id, theirs.model_max_length) == (ours.mask, ours.dec, 12)
