"""What every evaluator is: a call that takes a model and pairs and gives numbers, named as in the papers.

Models are of any class: an evaluator asks for what it needs (the protocols below), and says what a model lacks.

Shapes: B pairs in a batch, L image tokens, D width, E embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tldr.data.loading import Viewer
from tldr.metric.rank import Match
from tldr.pairs import Pairs


class Seeing(Viewer, Protocol):
    """A model that takes pictures."""

    device: torch.device


@runtime_checkable
class DualEncoder(Seeing, Protocol):
    """Embeds pictures and texts in one space, as unit vectors: BLIP, CLIP."""

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, E)."""
        ...

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, E)."""
        ...


@runtime_checkable
class Matcher(Seeing, Protocol):
    """Looks at a picture and a text together: BLIP, ViLT."""

    def image_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, L, D)."""
        ...

    def match(self, image_tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """(B, L, D) and B captions -> (B,) log-odds that they belong together."""
        ...


class Evaluator(ABC):
    """``evaluator(model, pairs) -> {"retrieval/tr@1": 61.8, ...}``.

    ``task`` names the split of the data that it is made for; ``columns`` are those that it reads besides image and
    caption, which the data sets ``sources`` have. After a call, ``details`` is what the model said, a record for every
    picture or question, for people to look at; some evaluators have none.
    """

    task: ClassVar[str] = "pairs"
    columns: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[str] = "any"

    def __init__(self, *, batch_size: int = 64, num_workers: int = 0, progress: bool = True) -> None:
        self.batch_size, self.num_workers, self.progress = batch_size, num_workers, progress
        self.details: list[dict[str, Any]] = []

    @abstractmethod
    def lacks(self, model: nn.Module) -> str:
        """What the model needs but does not have, in words; empty if it can be evaluated."""

    @abstractmethod
    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """The model's numbers on the pairs; the model is left as it was."""

    def check(self, model: nn.Module, pairs: Pairs) -> None:
        """Raises ValueError saying what the model lacks, or the pairs: at once, before anything is computed."""
        name = type(self).__name__.lower()
        lacking = self.lacks(model)
        if lacking:
            raise ValueError(f"{name}: {type(model).__name__} lacks {lacking}")
        if not len(pairs):
            raise ValueError(f"{name} needs pairs to evaluate on, and there are none")
        self.check_columns(pairs, self.columns)

    def check_columns(self, pairs: Pairs, columns: Sequence[str]) -> None:
        """Raises ValueError naming the columns that are not there or not filled, and the data that have them."""
        name, there = type(self).__name__.lower(), pairs.table.column_names
        missing = [column for column in columns if column not in there]
        if missing:
            raise ValueError(
                f"{name} reads the column{'s' * (len(missing) > 1)} {', '.join(missing)}, which these pairs do not "
                f"have; they have {', '.join(there)}. Use data that do: {self.sources}"
            )
        for column in columns:
            empty = pairs.table[column].null_count
            if empty:
                raise ValueError(
                    f"{name}: {empty} of {len(pairs)} pairs have no {column}: a test set whose truth is not public? "
                    f"Give data that have it: {self.sources}"
                )

    def bar(self, name: str, total: int, unit: str) -> Any:
        """A progress bar."""
        return tqdm(total=total, desc=name, unit=unit, disable=not self.progress, leave=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards, every part of the model is in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.inference_mode():
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def untrained(model: nn.Module, *objectives: str) -> str:
    """Which of these ``objectives`` the model (a BLIP has a choice of them), or the checkpoint that it began from, was
    not trained for, in words; empty if none. An untrained head exists too, and would be measured as initialised."""
    had = getattr(model, "objectives", objectives)
    lost = [one for one in objectives if one not in had]
    if lost:
        return f"training for {' and '.join(lost)}, its objectives being {', '.join(had)}"
    unlearned: list[str] = getattr(model, "unlearned", lambda _: [])(objectives)
    many = f" and {len(unlearned) - 1} more" if len(unlearned) > 1 else ""
    return f"{unlearned[0]}{many}, which the checkpoint that it began from does not have" if unlearned else ""


def unfit_to_compare(model: nn.Module, *, rerank: bool = False) -> str:
    """What a model lacks to compare pictures with texts by embeddings, or else by judging pairs; ``rerank``: both."""
    dual = isinstance(model, DualEncoder)
    if not (dual or isinstance(model, Matcher)):
        return "embed_images and embed_texts, and also image_tokens and match"
    return untrained(model, *(["itc"] if dual else []), *(["itm"] if rerank or not dual else []))


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the model's device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def embed_texts(model: DualEncoder, captions: Sequence[str], *, batch_size: int, bar: Any) -> Tensor:
    """(K, E) embeddings of K captions."""
    embeddings = []
    for start in range(0, len(captions), batch_size):
        embeddings.append(model.embed_texts(captions[start : start + batch_size]).float())
        bar.update(len(embeddings[-1]))
    return torch.cat(embeddings)


def matching(model: Matcher, tokens: Tensor, captions: Sequence[str]) -> Match:
    """The model's judgement by numbers of pictures, whose (K, L, D) tokens lie on the CPU, and of captions."""

    def match(image: Tensor, text: Tensor) -> Tensor:
        needed, places = image.cpu().unique(return_inverse=True)  # one picture, many texts: move it once
        chosen = tokens[needed].to(model.device)[places.to(model.device)]
        rows: list[int] = text.tolist()
        return model.match(chosen, [captions[row] for row in rows])

    return match


def check_matches(count: int, most: int, name: str) -> None:
    """Raises ValueError where ranking by matching alone would take more than ``most`` looks at a picture and a text."""
    if count > most:
        raise ValueError(
            f"{name}: the model has no embeddings, so that each picture has to be matched with each text, {count:,} "
            f"times; that is more than evaluator.{name}.max_matches={most:,}. Raise it, or give fewer pairs"
        )


def as_dual(model: nn.Module) -> DualEncoder:
    """The model, known to embed."""
    return cast(DualEncoder, model)


def as_matcher(model: nn.Module) -> Matcher:
    """The model, known to match."""
    return cast(Matcher, model)
