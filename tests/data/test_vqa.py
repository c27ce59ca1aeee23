import json

import pytest

from tldr.data.base import Bad, Row
from tldr.data.pool import read_pool
from tldr.data.vqa import Vqa

QUESTIONS = {
    "task_type": "Open-Ended",
    "questions": [
        {"image_id": 42, "question": "What colour is it?", "question_id": 42000},
        {"image_id": 42, "question": "How many?", "question_id": 42001},
        {"image_id": 7, "question": "Is it day?", "question_id": 7000},
        {"image_id": 7, "question_id": 7001},
        {"question": "Where?", "question_id": 7002},
    ],
}


def annotation(question_id, answers, kind="other"):
    given = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(answers, 1)]
    return {"question_id": question_id, "answers": given, "answer_type": kind, "question_type": "what", "image_id": 1}


ANNOTATIONS = {
    "annotations": [
        annotation(42001, ["2"] * 9 + ["3"], "number"),
        annotation(42000, ["red"] * 7 + ["dark red"] * 3),
        annotation(7001, ["x"] * 10),
        annotation(7002, ["x"] * 10),
        annotation(99, ["of nothing"] * 10),
    ]
}


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_questions_with_ten_answers(tmp_path):
    reader = Vqa(write(tmp_path / "q.json", QUESTIONS), annotations=write(tmp_path / "a.json", ANNOTATIONS))
    red = {"answers": ["red"] * 7 + ["dark red"] * 3, "answer_type": "other", "question_type": "what", "image_id": 42}
    two = {"answers": ["2"] * 9 + ["3"], "answer_type": "number", "question_type": "what", "image_id": 42}
    assert list(reader.rows()) == [
        Row("COCO_val2014_000000000042.jpg", "What colour is it?", "42000", red, "q.json question 0"),
        Row("COCO_val2014_000000000042.jpg", "How many?", "42001", two, "q.json question 1"),
        Bad("COCO_val2014_000000000007.jpg", b"Is it day?", "read", "no annotation: q.json question 2", "7000"),
        Bad("COCO_val2014_000000000007.jpg", b"", "caption", "no caption: q.json question 3", "7001"),
        Bad("", b"Where?", "read", "no image: q.json question 4", "7002"),
        Bad("", b"", "read", "no question: q.json has none of this id", "99"),
    ]
    pool = read_pool(reader, verify="none", max_bad_fraction=0.9, progress=False)
    assert (pool.read, len(pool.pairs)) == (6, 2)
    assert pool.pairs.table["answers"].to_pylist() == [red["answers"], two["answers"]]


def test_questions_without_answers(tmp_path):
    file = write(tmp_path / "q.json", {"questions": QUESTIONS["questions"][:3]})
    rows = list(Vqa(file, picture="COCO_test2015_%012d.jpg").rows())
    assert [row.image for row in rows][2] == "COCO_test2015_000000000007.jpg"
    assert [row.extra for row in rows if isinstance(row, Row)] == [{"image_id": 42}, {"image_id": 42}, {"image_id": 7}]


def test_several_files_have_each_their_own(tmp_path):
    """The published recipes train on train2014 and val2014."""
    other = {"questions": [{"image_id": 3, "question": "Who?", "question_id": 42000}]}
    files = [write(tmp_path / "q.json", QUESTIONS), write(tmp_path / "r.json", other)]
    told = {"annotations": [annotation(42000, ["he"] * 10)]}
    answers = [write(tmp_path / "a.json", ANNOTATIONS), write(tmp_path / "b.json", told)]
    reader = Vqa(files, annotations=answers, picture=["train/%03d.jpg", "val/%03d.jpg"])
    one, two = (list(Vqa(f, annotations=a).rows()) for f, a in zip(files, answers, strict=True))
    found = list(reader.rows())
    assert len(found) == len(one) + len(two)
    rows = [row for row in found if isinstance(row, Row)]
    assert [(row.image, row.extra["answers"][0]) for row in rows] == [
        ("train/042.jpg", "red"), ("train/042.jpg", "2"), ("val/003.jpg", "he"),
    ]  # fmt: skip
    assert [row.image for row in Vqa(files, picture="%d.jpg").rows() if isinstance(row, Row)][-1] == "3.jpg"
    with pytest.raises(ValueError, match=r"data\.questions has 2 files and data\.annotations 1: give one for each"):
        Vqa(files, annotations=answers[0])
    with pytest.raises(ValueError, match=r"data\.questions has 2 files and data\.picture 1: give one for each"):
        Vqa(files, picture=["%d.jpg"])


def test_errors_name_the_argument(tmp_path):
    questions, annotations = write(tmp_path / "q.json", QUESTIONS), write(tmp_path / "a.json", ANNOTATIONS)
    with pytest.raises(
        ValueError, match=r"none of VQA's files of questions; .* swap data\.questions and data\.annotat"
    ):
        list(Vqa(annotations).rows())
    for name, message in [
        ("x.jpg", "takes no image id"),
        ("%s%s.jpg", "takes no image id"),
        ("%(a)d", "takes no image"),
    ]:
        with pytest.raises(ValueError, match=rf"data\.picture=.* {message}"):
            Vqa(questions, picture=name)
    with pytest.raises(ValueError, match=r"data\.annotations="):
        Vqa(questions, annotations=tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"questions": [')
    with pytest.raises(ValueError, match=r"is not JSON"):
        list(Vqa(tmp_path / "cut.json").rows())


def test_hostile_questions_survive(tmp_path, all_hostile):
    questions = [{"image_id": 1, "question": text, "question_id": n} for n, text in enumerate(all_hostile)]
    rows = list(Vqa(write(tmp_path / "q.json", {"questions": questions})).rows())
    assert [row.caption for row in rows] == all_hostile
