"""VQA, version 2 (Goyal et al., 2017; https://visualqa.org/download.html): a file of questions about COCO's pictures
and one of annotations, ten people's answers to each.

The caption is the question, the uid its id. The column ``answers`` lists all ten, ``answer_type`` (yes/no, number,
other) and ``question_type`` are the annotators'. Without a file of annotations, as for test-dev, there are none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tldr.data.base import Bad, Reader, Row, existing_file, existing_folder, raw


class Vqa(Reader):
    """The questions of one file, or of several, each with its own ``annotations`` and ``picture``, in the same order.
    ``images`` is the folder (or URL) of the pictures, by default the one that holds the files.

    ``picture`` makes a file's name of an image id, as ``%`` does; one alone is for all files.
    """

    def __init__(
        self,
        questions: str | Path | Sequence[str | Path],
        *,
        annotations: str | Path | Sequence[str | Path] | None = None,
        images: str | Path | None = None,
        picture: str | Sequence[str] = "COCO_val2014_%012d.jpg",
        name: str = "vqa",
    ) -> None:
        self.questions = [existing_file(file, "data.questions") for file in _several(questions)]
        count = len(self.questions)
        self.pictures = [picture] * count if isinstance(picture, str) else list(picture)
        self.annotations: Sequence[Path | None] = [None] * count
        if annotations is not None:
            self.annotations = [existing_file(file, "data.annotations") for file in _several(annotations)]
        for key, given in (("annotations", self.annotations), ("picture", self.pictures)):
            if len(given) != count:
                raise ValueError(
                    f"data.questions has {count} files and data.{key} {len(given)}: give one for each, in that order"
                )
        folder = os.path.commonpath([file.parent for file in self.questions])
        self.root = existing_folder(folder if images is None else images, "data.images")
        for pattern in self.pictures:
            try:
                _ = pattern % 7
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"data.picture={pattern!r} takes no image id; give one like COCO_val2014_%012d.jpg"
                ) from error
        self.name = name

    def rows(self) -> Iterator[Row | Bad]:
        """The questions in the order of the files; after each file's, its annotations that have no question."""
        for files in zip(self.questions, self.annotations, self.pictures, strict=True):
            yield from _rows(*files)


def _rows(questions: Path, annotations: Path | None, picture: str) -> Iterator[Row | Bad]:
    answers: dict[Any, dict[str, Any]] = {}
    if annotations is not None:
        answers = {one.get("question_id"): one for one in _listed(annotations, "annotations", "questions")}
    for number, question in enumerate(_listed(questions, "questions", "annotations")):
        where = f"{questions.name} question {number}"
        uid, image_id, text = (question.get(key) for key in ("question_id", "image_id", "question"))
        annotation = answers.pop(uid, None)
        said = raw(text) if isinstance(text, str) else b""
        name = None if uid is None else str(uid)
        if not isinstance(image_id, int):
            yield Bad("", said, "read", f"no image: {where}", name)
        elif not isinstance(text, str):
            yield Bad(picture % image_id, b"", "caption", f"no caption: {where}", name)
        elif annotation is None and annotations is not None:
            yield Bad(picture % image_id, said, "read", f"no annotation: {where}", name)
        else:
            yield Row(picture % image_id, text, name, _extra(annotation, image_id), where)
    for uid in answers:
        yield Bad("", b"", "read", f"no question: {questions.name} has none of this id", str(uid))


def _several(files: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    if not files:
        raise ValueError("data.questions=[] and data.annotations=[] name no file")
    return [files] if isinstance(files, str | Path) else files


def _extra(annotation: dict[str, Any] | None, image_id: int) -> dict[str, Any]:
    if annotation is None:
        return {"image_id": image_id}
    given = [answer.get("answer") for answer in annotation.get("answers") or []]
    return {
        "answers": [answer for answer in given if isinstance(answer, str)],
        "answer_type": annotation.get("answer_type"),
        "question_type": annotation.get("question_type"),
        "image_id": image_id,
    }


def _listed(path: Path, key: str, other: str) -> list[dict[str, Any]]:
    """The list ``key`` of one of VQA's files."""
    try:
        content = json.loads(path.read_text("utf-8-sig", "surrogateescape"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        hint = (
            f"it has {other}: swap data.{key} and data.{other}"
            if isinstance(content, dict) and other in content
            else ""
        )
        raise ValueError(f"{path} is none of VQA's files of {key}{hint and f'; {hint}'}")
    return [one if isinstance(one, dict) else {} for one in found]
