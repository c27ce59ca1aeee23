import pytest

from tests.evaluator.conftest import Fake
from tldr.evaluator.vqa import Vqa


class Answerer(Fake):
    """Answers by the question's last word."""

    def answer(self, batch):
        self.numbers(batch["images"])
        return [caption.split()[-1] for caption in batch["captions"]]


def evaluate(model, pairs, **options):
    evaluator = Vqa(progress=False, **options)
    return evaluator(model, pairs), evaluator.details


@pytest.fixture
def columns():
    return {
        "answers": [["red"] * 10, ["two"] * 2 + ["3"] * 8, ["yes"] * 9 + ["no"], ["no"] * 10],
        "answer_type": ["other", "number", "yes/no", "yes/no"],
        "uid": ["11", "12", "q-13", "14"],
    }


QUESTIONS = ["what colour? red", "how many? 2", "is it? yes", "is it not? yes"]


def test_accuracy_by_ten_annotators_and_type(build, columns):
    found, details = evaluate(Answerer(), build([1, 1, 2, 3], QUESTIONS, **columns), batch_size=3)
    assert found == pytest.approx(
        {
            "vqa/accuracy": 100 * (1 + 0.6 + 1 + 0) / 4,
            "vqa/number": 60.0,
            "vqa/other": 100.0,
            "vqa/yes_no": 50.0,
            "vqa/questions": 4,
        }
    )
    assert [record["question_id"] for record in details] == [11, 12, 14, "q-13"]
    assert details[1] == {
        "question_id": 12, "answer": "2", "question": "how many? 2", "answers": ["two"] * 2 + ["3"] * 8,
        "accuracy": 0.6, "image": "1.png",
    }  # fmt: skip


def test_without_types_there_is_one_number(build, columns):
    del columns["answer_type"]
    found, _ = evaluate(Answerer(), build([1, 1, 2, 3], QUESTIONS, **columns))
    assert set(found) == {"vqa/accuracy", "vqa/questions"}


def test_questions_whose_answers_are_not_public_are_answered(build, capsys):
    """VQA's test-dev: its server reads ``question_id`` and ``answer`` of a list."""
    pairs = build([1, 2], QUESTIONS[:2], uid=["11", "12"], image_id=[1, 2])
    found, details = evaluate(Answerer(), pairs)
    assert found == {"vqa/questions": 2}
    assert [(record["question_id"], record["answer"]) for record in details] == [(11, "red"), (12, "2")]
    assert "no accuracy" in capsys.readouterr().out


def test_errors_say_what_to_do(build, columns):
    with pytest.raises(ValueError, match=r"vqa reads the column answers, which these pairs do not have.*data=vqa"):
        evaluate(Answerer(), build([1], ["what?"]))
    with pytest.raises(ValueError, match="vqa: Fake lacks answer "):
        evaluate(Fake(), build([1, 1, 2, 3], QUESTIONS, **columns))
    columns["answers"] = [["red"], [], ["yes"], ["no"]]
    with pytest.raises(ValueError, match="1 questions have no answers, question 12 for one"):
        evaluate(Answerer(), build([1, 1, 2, 3], QUESTIONS, **columns))
