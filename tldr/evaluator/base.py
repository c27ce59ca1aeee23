"""What every evaluator is: a call that takes a model and pairs and gives numbers, named as in the papers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tldr.pairs import Pairs


class Evaluator(ABC):
    """``evaluator(model, pairs) -> {"retrieval/tr@1": 61.8, ...}``. Which models it takes, the subclass says."""

    @abstractmethod
    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """The model's numbers on the pairs; the model is left as it was."""


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
