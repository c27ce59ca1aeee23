import json
from collections import defaultdict

import numpy as np
import pytest
import torch

from tests.evaluator.conftest import Fake
from tldr.evaluator.nlvr2 import Nlvr2, consistency


class Judge(Fake):
    """Says that the first picture's number is the greater."""

    columns = ("label", "image_2")

    def judge(self, batch):
        first = torch.tensor(self.numbers(batch["images"]))
        return (first - torch.tensor(self.numbers(batch["images_2"]))).float()


class OneEyed(Fake):
    """Says that the number is above 5."""

    columns = ("label",)

    def judge(self, batch):
        assert "images_2" not in batch
        return torch.tensor(self.numbers(batch["images"])) - 5.0


def evaluate(model, pairs, **options):
    evaluator = Nlvr2(progress=False, **options)
    return evaluator(model, pairs), evaluator.details


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_accuracy_and_consistency(build, batch_size):
    """Three sentences with 2, 3 and 1 pairs; one pair of the second is judged wrong, and that of the third."""
    pairs = build(
        [9, 1, 2, 5, 5, 3],
        ["one", "one", "two", "two", "two", "three"],
        image_2=[1, 9, 7, 4, 6, 2],
        label=[True, False, False, True, True, False],
        identifier=["s1", "s1", "s2", "s2", "s2", "s3"],
    )
    found, details = evaluate(Judge(), pairs, batch_size=batch_size)
    assert found == pytest.approx({"nlvr2/accuracy": 100 * 4 / 6, "nlvr2/consistency": 100 / 3, "nlvr2/sentences": 6})
    assert [record["right"] for record in details] == [True, True, True, True, False, False]
    assert details[4] == {
        "uid": "0004", "caption": "two", "image": "5.png", "image_2": "6.png", "label": True,
        "log_odds": -1.0, "right": False,
    }  # fmt: skip


def test_one_picture_without_sentences_in_common(build):
    pairs = build([9, 1], ["many", "many"], label=[True, True])
    assert evaluate(OneEyed(), pairs)[0] == {"nlvr2/accuracy": 50.0, "nlvr2/sentences": 2}
    with pytest.raises(ValueError, match=r"nlvr2 reads the column image_2, which these pairs do not have.*data=nlvr2"):
        evaluate(Judge(), pairs)


def test_a_model_for_one_picture_is_given_one(build):
    pairs = build([9, 1], ["many", "many"], image_2=[3, 3], label=[True, True])
    assert evaluate(OneEyed(), pairs)[0]["nlvr2/accuracy"] == 50.0


def test_what_is_not_a_number_is_wrong(build):
    class Nan(OneEyed):
        def judge(self, batch):
            return torch.full((len(batch["captions"]),), torch.nan)

    pairs = build([1, 2], ["a", "a"], label=[False, True])
    assert evaluate(Nan(), pairs)[0]["nlvr2/accuracy"] == 0.0


def test_consistency_is_that_of_the_corpus_script(test_data):
    """Its rule: an identifier without its third part names the sentence; one wrong answer spoils it."""
    lines = (test_data / "nlvr" / "nlvr2_dev.json").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    right = np.random.default_rng(0).random(len(examples)) < 0.8
    by_sentence = defaultdict(list)
    for example, is_right in zip(examples, right, strict=True):
        split, number, _, sentence = example["identifier"].split("-")
        by_sentence[split, number, sentence].append(bool(is_right))
    expected = sum(map(all, by_sentence.values())) / len(by_sentence)
    groups = np.array(["-".join(e["identifier"].split("-")[:2] + e["identifier"].split("-")[3:]) for e in examples])
    assert consistency(right, groups) == pytest.approx(expected)
    assert 0.3 < expected < 0.7


def test_errors_say_what_to_do(build):
    with pytest.raises(ValueError, match=r"nlvr2 reads the column label, which these pairs do not have.*data=nlvr2"):
        evaluate(Judge(), build([1], ["a"]))
    with pytest.raises(ValueError, match="nlvr2: Fake lacks judge"):
        evaluate(Fake(), build([1], ["a"], label=[True]))
    with pytest.raises(ValueError, match="nlvr2: 1 of 2 pairs have no label"):
        evaluate(OneEyed(), build([1, 2], ["a", "b"], label=[True, None]))
