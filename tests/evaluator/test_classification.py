import pytest
import torch

from tests.evaluator.conftest import Fake
from tldr.evaluator.classification import Classification


class Guesser(Fake):
    """Likes class (number + 1), then (number + 2), ..., of seven."""

    classes = tuple("abcdefg")

    def predict(self, images):
        return torch.tensor(
            [[1.0 / (1 + (place - number - 1) % 7) for place in range(7)] for number in self.numbers(images)]
        )


def evaluate(model, pairs, **options):
    return Classification(progress=False, **options)(model, pairs)


def test_accuracy_of_the_first_and_the_first_five(build):
    pairs = build([0, 1, 2, 3], ["x"] * 4, kind=["b", "c", "b", "f"])  # first, first, sixth, second
    found = evaluate(Guesser(), pairs, column="kind", batch_size=3)
    assert found == pytest.approx(
        {
            "classification/top1": 50.0,
            "classification/top5": 75.0,
            "classification/classes": 7,
            "classification/images": 4,
        }
    )


def test_classes_that_are_most_unlikely_are_not_equal(build):
    """Of a sure classifier all classes but the first have probabilities of less than 1e-12."""

    class Sure(Guesser):
        def predict(self, images):
            return (60 * super().predict(images)).softmax(1)

    pairs = build([0, 1, 2, 3], ["x"] * 4, kind=["b", "c", "b", "f"])
    found = evaluate(Sure(), pairs, column="kind", batch_size=3)
    assert found == evaluate(Guesser(), pairs, column="kind")


def test_errors_say_what_to_do(build):
    pairs = build([0, 1], ["x"] * 2, label=["a", "z"])
    with pytest.raises(ValueError, match="'z' is none of the model's 7 classes"):
        evaluate(Guesser(), pairs)
    with pytest.raises(ValueError, match=r"classification: Fake lacks classes and predict .*model=classifier"):
        evaluate(Fake(), pairs)
    with pytest.raises(ValueError, match="classification reads the column kind, which these pairs do not have"):
        evaluate(Guesser(), pairs, column="kind")
    with pytest.raises(ValueError, match="classification: 1 of 2 pairs have no label"):
        evaluate(Guesser(), build([0, 1], ["x"] * 2, label=["a", None]))
