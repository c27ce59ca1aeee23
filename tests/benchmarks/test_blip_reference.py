"""Ours and the published BLIP lie beside each other, where a clone of it is at hand (``$TLDR_TEST_DATA/BLIP``)."""

import os
from pathlib import Path

import pytest
import torch

CLONE = Path(os.environ.get("TLDR_TEST_DATA", "no data")) / "BLIP"


@pytest.fixture(scope="module")
def bench(module):
    return module("blip_reference")


def test_what_is_no_clone_is_refused(bench, tmp_path):
    with pytest.raises(SystemExit, match=r"has no models/blip_pretrain.py: git clone"):
        bench.main(["--source", str(tmp_path)])


def test_every_weight_has_a_name_there(bench):
    """Those that encoder and decoder share have two."""
    ours, depth = bench.ours_of(64, 2, 32, queue=4), 2
    there = bench.by_their_names(ours.state_dict(), depth)
    named = {tensor.data_ptr() for tensor in there.values()}
    unnamed = {name for name, tensor in ours.state_dict().items() if tensor.data_ptr() not in named}
    assert {name for name in unnamed if not name.startswith(("teacher.", "queue."))} == {"temperature"}
    shared = "encoder.layer.1.crossattention.self.query.weight"
    assert there[f"text_encoder.{shared}"] is there[f"text_decoder.bert.{shared}"]
    own = "encoder.layer.1.attention.self.query.weight"
    assert there[f"text_encoder.{own}"] is not there[f"text_decoder.bert.{own}"]
    assert there["visual_encoder.blocks.1.attn.qkv.weight"].shape == (192, 64)


def test_captions_are_padded_as_theirs_are(bench, module):
    ours = bench.ours_of(64, 1, 32, queue=4).tokenizer
    padding = module("_blip_code").Padding(ours)
    found = padding(["a dog", "the small red dog"], max_length=30, truncation=True)
    assert found.input_ids.shape == found.attention_mask.shape == (2, 30)
    assert found.attention_mask.sum(1).tolist() == [4, 6]
    assert (found.input_ids[found.attention_mask == 0] == padding.pad_token_id).all()


def test_what_differs_is_told(bench):
    """By the entry that differs most, in parts of the tensor's largest."""
    theirs = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([2.0])}
    assert bench.apart(theirs, theirs) == 0
    assert bench.apart({"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([2.2])}, theirs) == pytest.approx(0.25)


@pytest.mark.skipif(not CLONE.is_dir(), reason="no clone of salesforce/BLIP in $TLDR_TEST_DATA")
def test_losses_and_gradients_are_those_of_the_authors(bench, capsys):
    bench.main(["--source", str(CLONE), "--shapes", "64x1x32x4", "--words", "5", "--seconds", "0.01"])
    assert "| 64x1x32x4 | 5 |" in capsys.readouterr().out
    modules = bench.modules_of(CLONE)
    for alpha in bench.ALPHAS:
        found = bench.compare(modules, alpha)
        for mine, theirs in found["losses"].values():
            assert mine == pytest.approx(theirs, abs=1e-5)
        assert max(found[name] for name in bench.AFTER) < 1e-4
