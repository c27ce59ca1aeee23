"""Visual question answering (VQAv2: Goyal et al. 2017, arXiv 1612.00837): a question about a picture, answered freely,
and counted by how many of ten people say the same (`tldr.metric.answer`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.evaluator.base import Evaluator, Seeing, evaluating, on_device
from tldr.metric.answer import accuracy
from tldr.pairs import Pairs

_TYPE = "answer_type"


@runtime_checkable
class Answerer(Seeing, Protocol):
    """What the task asks of a model."""

    def answer(self, batch: Any) -> list[str]:
        """A batch, its questions in ``captions`` -> B answers."""
        ...


class Vqa(Evaluator):
    """The question is the pair's ``caption``; the column ``answers`` holds what people answered, and ``answer_type``,
    if there is one, the kind of answer (yes/no, number, other).

    A question's record in ``details`` opens with ``question_id`` and ``answer``, which VQA's server reads. For VQA's
    questions whose answers are not public (test-dev), the records are the result, and there is no accuracy.
    """

    task = "vqa"
    columns = ("answers",)
    sources = "data=vqa, or data=shapes_eval and data=cifar_scenes_eval"

    def lacks(self, model: nn.Module) -> str:
        """The head that answers."""
        return "" if isinstance(model, Answerer) else "answer (train it one: python train.py model=vqa)"

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``vqa/accuracy`` in percent, the same for each type (``vqa/yes_no``, ...), and how many ``questions``: these
        alone where no question has answers."""
        self.check(model, pairs)
        public = "answers" in pairs.table.column_names
        people: list[list[str]] = pairs.table["answers"].to_pylist() if public else []
        unanswered = [pairs.uids[row].as_py() for row, answers in enumerate(people) if not answers]
        if unanswered:
            raise ValueError(
                f"vqa: {len(unanswered)} questions have no answers, question {unanswered[0]} for one: a test set whose "
                "answers are not public? Evaluate on one that has them"
            )
        dataset = PairsDataset.seen_by(cast(Answerer, model), pairs)
        said: list[str] = []
        with evaluating(model), self.bar("answer", len(pairs), " questions") as bar:
            answerer = cast(Answerer, model)
            for batch in ordered_loader(dataset, batch_size=self.batch_size, num_workers=self.num_workers):
                said += answerer.answer(on_device(cast(Mapping[str, Any], batch), answerer.device))
                bar.update(len(batch["captions"]))
        if not public:
            self.details = self._records(pairs, said)
            print("vqa: questions without answers, so there is no accuracy; the details are what VQA's server reads")
            return {"vqa/questions": len(said)}
        scores = [accuracy(answer, answers) for answer, answers in zip(said, people, strict=True)]
        judged = [
            {"answers": answers, "accuracy": round(score, 4)} for answers, score in zip(people, scores, strict=True)
        ]
        self.details = self._records(pairs, said, judged)
        numbers: dict[str, float] = {"vqa/accuracy": 100 * sum(scores) / len(scores)}
        if _TYPE in pairs.table.column_names:
            kinds: dict[str, list[float]] = defaultdict(list)
            for kind, score in zip(pairs.table[_TYPE].to_pylist(), scores, strict=True):
                if kind is not None:
                    kinds["".join(c if c.isalnum() else "_" for c in kind)].append(score)
            numbers |= {f"vqa/{kind}": 100 * sum(each) / len(each) for kind, each in sorted(kinds.items())}
        return {**numbers, "vqa/questions": len(scores)}

    def check_columns(self, pairs: Pairs, columns: Sequence[str]) -> None:
        """VQA's own questions (they have an ``image_id``) may be without answers."""
        if "image_id" not in pairs.table.column_names or "answers" in pairs.table.column_names:
            super().check_columns(pairs, columns)

    def _records(
        self, pairs: Pairs, said: Sequence[str], judged: Sequence[Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        rows = pairs.table.select(["uid", "caption", "image"]).to_pylist()
        return [
            {
                "question_id": int(row["uid"]) if row["uid"].isdecimal() else row["uid"],
                "answer": answer,
                "question": row["caption"],
                **more,
                "image": row["image"],
            }
            for row, answer, more in zip(rows, said, judged or [{}] * len(rows), strict=True)
        ]
