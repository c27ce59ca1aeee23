"""Against pycocoevalcap's own evaluation, on COCO's files, read by our reader."""

import contextlib
import importlib.util
import io
import json
import shutil
from collections import defaultdict

import pytest

from tldr.data.base import Row
from tldr.data.coco import Coco
from tldr.metric import caption
from tldr.metric.caption import score_captions, tokenize, usable

THEIRS = {
    "bleu1": "Bleu_1", "bleu2": "Bleu_2", "bleu3": "Bleu_3", "bleu4": "Bleu_4",
    "meteor": "METEOR", "rouge_l": "ROUGE_L", "cider": "CIDEr",
}  # fmt: skip

package = pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="the extra `metrics` is missing")
java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")


@pytest.fixture(scope="module")
def captions(test_data):
    """COCO val2017 by our reader: the captions of each image id."""
    found = defaultdict(list)
    for row in Coco(test_data / "coco" / "captions_val2017.json").rows():
        assert isinstance(row, Row)
        found[row.extra["image_id"]].append(row.caption)
    return found


def reference_scores(annotations, results, monkeypatch, *, meteor=True):
    """COCOEvalCap on the images of the results, without SPICE, which would be downloaded."""
    from pycocoevalcap import eval as theirs
    from pycocotools.coco import COCO

    class Nothing:
        def compute_score(self, right, said):
            return 0.0, [0.0] * len(right)

        def method(self):
            return "none"

    monkeypatch.setattr(theirs, "Spice", Nothing)
    meteors = []
    made = theirs.Meteor
    kept = lambda: meteors.append(made()) or meteors[-1]  # noqa: E731
    monkeypatch.setattr(theirs, "Meteor", kept if meteor else Nothing)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotations))
        found = coco.loadRes(results)
        scorer = theirs.COCOEvalCap(coco, found)
        scorer.params["image_id"] = found.getImgIds()
        scorer.evaluate()
    for each in meteors:  # which leaves its pipes open
        for pipe in (each.meteor_p.stdin, each.meteor_p.stdout, each.meteor_p.stderr):
            pipe.close()
    return scorer.eval, scorer.imgToEval


@package
@java
def test_numbers_are_those_of_pycocoevalcap_on_its_own_results(test_data, captions, monkeypatch, capfd):
    results = test_data / "coco" / "captions_val2017_fakecap_results.json"
    said = {result["image_id"]: result["caption"] for result in json.loads(results.read_text())}
    assert len(said) == 4989
    found = score_captions(list(said.values()), [captions[image_id] for image_id in said])
    assert capfd.readouterr() == ("", "")
    expected, _ = reference_scores(test_data / "coco" / "captions_val2017.json", str(results), monkeypatch)
    for ours, theirs in THEIRS.items():
        assert found.overall[ours] / 100 == pytest.approx(expected[theirs], abs=5e-5), ours
    assert found.overall["rouge_l"] > 30


@package
@java
def test_numbers_are_those_of_pycocoevalcap_on_what_people_wrote(test_data, captions, monkeypatch):
    """The first caption of each of 300 pictures, changed a little, against all of them; METEOR takes its time."""
    said = {image_id: captions[image_id][0].replace(" a ", " the ") for image_id in sorted(captions)[:300]}
    right = [captions[image_id] for image_id in said]
    found = score_captions(list(said.values()), right, metrics=["bleu", "rouge_l", "cider"])
    results = [{"image_id": image_id, "caption": words} for image_id, words in said.items()]
    expected, each = reference_scores(test_data / "coco" / "captions_val2017.json", results, monkeypatch, meteor=False)
    for ours, theirs in THEIRS.items():
        if ours == "meteor":
            continue
        assert found.overall[ours] / 100 == pytest.approx(expected[theirs], abs=5e-5), ours
        for number, image_id in enumerate(said):
            assert found.each[ours][number] / 100 == pytest.approx(each[image_id][theirs], abs=5e-5)
    assert 40 < found.overall["bleu4"] < 99


@package
@java
def test_odd_captions_keep_their_place():
    """A line's end in a caption, one of full stops only, an empty one, and METEOR's separator, which is split up."""
    texts = ["A dog\u2028runs.\r\nFast", "...", "", "A ||| café (red)", "don't"]
    assert tokenize(texts) == ["a dog runs fast", "", "", "a | | | café -lrb- red -rrb-", "do n't"]
    found = score_captions(["", "a dog"], [["a ||| dog", "..."], ["a dog"]], metrics=["meteor", "bleu"])
    assert found.each["meteor"] == [0.0, 100.0]
    assert found.each["bleu1"] == pytest.approx([0, 100], abs=0.01)


@package
def test_the_simple_tokenizer_needs_no_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    metrics = ["bleu", "rouge_l", "cider"]
    said, right = ["A dog, running!", "it's a cat"], [["a dog running", "the dog"], ["a cat sleeps"]]
    found = score_captions(said, right, metrics=metrics, tokenizer="simple")
    assert list(found.overall) == ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]
    assert found.each["bleu3"][0] == pytest.approx(100, abs=0.01)
    assert found.each["bleu1"][1] == pytest.approx(100 * 2 / 3, abs=0.01)
    with pytest.raises(ValueError, match=r"meteor and the ptb tokenizer need Java.*tokenizer=simple.*metrics=\["):
        usable(["meteor"], "ptb")
    with pytest.raises(ValueError, match="the ptb tokenizer need Java"):
        usable(["bleu"], "ptb")


@package
def test_spice_is_there_where_its_models_are(monkeypatch):
    monkeypatch.setattr(caption, "_spice_is_there", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    assert usable(None, "ptb") == ("bleu", "meteor", "rouge_l", "cider")
    with pytest.raises(ValueError, match="SPICE needs"):
        usable(["spice"], "ptb")
    monkeypatch.setattr(caption, "_spice_is_there", lambda: True)
    assert usable(None, "ptb") == caption.METRICS


def test_errors_name_the_choices(monkeypatch):
    with pytest.raises(ValueError, match=r"metrics=\['bleurt'\]; choose from bleu, meteor"):
        usable(["bleurt"], "ptb")
    with pytest.raises(ValueError, match="tokenizer=moses; choose from ptb, simple"):
        usable(None, "moses")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tldr-vlp\[metrics\]'"):
        usable(None, "ptb")
