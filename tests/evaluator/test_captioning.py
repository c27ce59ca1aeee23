import importlib.util

import pytest

from tests.evaluator.conftest import Fake
from tldr.evaluator.captioning import Captioning

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="the extra `metrics` is missing"
)
SIMPLE = {"tokenizer": "simple", "metrics": ["bleu", "cider"], "progress": False}
PEOPLE = {
    0: ["a red dog runs on grass", "the dog is running over grass"],
    1: ["two cats sleep on a bed"],
    2: ["a man rides a small horse", "a man on a horse", "somebody rides"],
}


class Writer(Fake):
    def __init__(self, captions):
        super().__init__()
        self.captions, self.options = captions, None

    def generate(self, images, **options):
        self.options = options
        return [self.captions[number] for number in self.numbers(images)]


@pytest.fixture
def pairs(build):
    """Captions of a picture do not lie side by side."""
    rows = [(2, 0), (0, 0), (1, 0), (2, 1), (0, 1), (2, 2)]
    ids = [100 + image for image, _ in rows]
    return build([image for image, _ in rows], [PEOPLE[image][n] for image, n in rows], image_id=ids)


def test_each_picture_is_captioned_once_and_scored_by_all_its_captions(pairs):
    model = Writer({0: "the dog is running over grass", 1: "two cats sleep on a bed", 2: "a man on a horse"})
    evaluator = Captioning(batch_size=2, **SIMPLE)
    found = evaluator(model, pairs)
    assert found["captioning/bleu4"] == pytest.approx(100, abs=0.01)
    assert found["captioning/images"] == 3
    assert set(found) == {f"captioning/{name}" for name in ("bleu1", "bleu2", "bleu3", "bleu4", "cider", "images")}
    assert model.options == {"strategy": "beam", "num_beams": 3, "min_length": 5, "max_length": 20}
    records = {record["image_id"]: record for record in evaluator.details}
    assert set(records) == {100, 101, 102}
    assert list(records[102])[:2] == ["image_id", "caption"]
    assert records[102]["caption"] == "a man on a horse"
    assert records[102]["references"] == PEOPLE[2]
    assert records[102]["image"] == "2.png"


def test_a_wrong_caption_costs(pairs):
    right = {0: "the dog is running over grass", 1: "two cats sleep on a bed", 2: "a man on a horse"}
    good = Captioning(**SIMPLE)(Writer(right), pairs)
    bad = Captioning(**SIMPLE)(Writer({**right, 1: "a plane in the sky"}), pairs)
    assert 0 < bad["captioning/cider"] < good["captioning/cider"]


def test_the_prompt_is_the_models(pairs):
    model = Writer(dict.fromkeys(range(3), "a dog"))
    evaluator = Captioning(prompt="a picture of ", num_beams=1, **SIMPLE)
    evaluator(model, pairs)
    assert model.options is not None
    assert model.options["prompt"] == "a picture of "
    assert model.options["num_beams"] == 1


def test_a_model_that_does_not_write_is_named(pairs):
    with pytest.raises(ValueError, match="captioning: Fake lacks generate"):
        Captioning(**SIMPLE)(Fake(), pairs)


def test_what_the_metrics_need_is_checked_first(pairs):
    model = Writer({})
    with pytest.raises(ValueError, match="choose from bleu"):
        Captioning(metrics=["accuracy"])(model, pairs)
    assert model.options is None
