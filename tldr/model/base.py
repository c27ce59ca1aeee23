"""What every model shares: a LightningModule whose losses are summed, its optimiser, and checkpoints that describe
themselves.

A checkpoint names its class and holds the arguments it was built with, so that `load_model` needs nothing else.
Loading runs no pickled code (``weights_only``)."""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import lightning as L
import pyarrow as pa
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from tldr.data.loading import Batch
from tldr.nn.optimizer import adamw
from tldr.nn.resize import resized
from tldr.nn.shard import shard
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder

_CLASS_KEY, _TRANSIENT_KEY = "tldr_class", "tldr_transient"


class Model(L.LightningModule, ABC):
    """A model that learns from batches of pairs. A subclass calls `save_hyperparameters` first, then defines `losses`.

    ``optimizer`` holds the arguments of `tldr.nn.optimizer.adamw`: lr, weight_decay, warmup_steps, schedule, ..."""

    columns: tuple[str, ...] = ()  # of the pairs, which the losses read beyond image and caption
    learns_tokenizer: ClassVar[bool] = True  # False: built without one, as a head whose backbone has its own
    head_names: ClassVar[tuple[str, ...]] = ()  # beginnings of the names of parameters that ``head_lr_scale`` is for
    compiled: tuple[type[nn.Module], ...] = (ImageEncoder, TextTransformer)  # to compile; a head takes its backbone's
    image_size: int
    resize_mode: str = "squash"  # how pictures become squares of that size: see `tldr.nn.vision.ImageEncoder`
    # The names of what `signals` gives, each with a pattern that matches the names of the weights behind it.
    signal_weights: ClassVar[Mapping[str, str]] = {}
    objective_weights: ClassVar[Mapping[str, str]] = {}  # likewise for what evaluators need: itc, itm, lm
    left_to_chance: tuple[str, ...] = ()  # names of parameters that the checkpoint it began from does not have
    indivisible: str = ""  # the option that makes the number of layer calls depend on the batch, which rules out FSDP

    def __init__(self, *, optimizer: Mapping[str, Any]) -> None:
        super().__init__()
        self.optimizer_arguments = dict(optimizer)

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The named losses of a batch; their sum is minimised. Names as in the papers: itc, itm, lm, commitment."""

    def prepare(self, captions: Sequence[str]) -> None:
        """Learn from the corpus before training begins, where a model does so (a codebook from keywords)."""

    def prepare_table(self, table: pa.Table) -> None:
        """Learn from the pairs' further columns before training begins, where a model does so (VQA's answers)."""

    def prepare_rows(self, count: int) -> None:
        """Make room for what is kept of each of the ``count`` training pairs, where a model does so (forgetting)."""

    @classmethod
    def columns_of(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The `columns` of a model with such arguments."""
        return cls.columns

    @classmethod
    def signals_of(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of what `signals` gives for a model with such arguments; empty: not known before it runs."""
        return tuple(cls.signal_weights)

    def unlearned(self, names: Iterable[str]) -> list[str]:
        """The untrained parameters behind these signals or objectives."""
        weights = {**self.signal_weights, **self.objective_weights}
        behind = [weights[name] for name in names if name in weights]
        return [name for name in self.left_to_chance if any(re.match(pattern, name) for pattern in behind)]

    @property
    def wrong_share(self) -> float | None:
        """The share of its training captions that it has found wrong; None if it does not model wrong captions."""
        return None

    def configure_model(self) -> None:
        """Set up what involves all processes: parts with a method ``share`` (a codebook) are shared among them, and
        the weights are sharded if the trainer's strategy asks for it. That raises ValueError if the number of times
        that layers run depends on the batch: processes would wait for each other forever."""
        for part in self.modules():
            if share := getattr(part, "share", None):
                share()
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            if self.indivisible:
                raise ValueError(f"{self.indivisible} cannot have its weights divided (trainer=fsdp): use trainer=ddp")
            shard(self, self.device_mesh["data_parallel"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum the losses and log each."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log("loss", total.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
        return total

    def log_now(self, found: Mapping[str, Tensor]) -> None:
        """Log what is measured now and then, at this step: ``log`` would write it at the next one that is logged, and
        once more at every such step until it is measured again."""
        self.log_dict(dict(found), logger=False)
        values = {name: float(value) for name, value in found.items()}
        for logger in self.loggers:
            cast(Logger, logger).log_metrics(values, step=self.global_step)

    def constants(self) -> dict[str, Tensor]:
        """Arrays that belong to the model and that selectors may ask for: a codebook."""
        return {}

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate changes every step."""
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, total_steps=steps, heads=self.head_names, **self.optimizer_arguments)

    def compile_networks(self, **options: Any) -> int:
        """Compile the networks in place, with ``options`` of torch.compile; their number. Names of parameters stay."""
        found = [part for part in self.modules() if isinstance(part, self.compiled)]
        # A text transformer alone has a dozen ways to run: roles, lengths, training or not. Beyond 8 torch gives up.
        torch._dynamo.config.recompile_limit = 64  # pyright: ignore[reportAttributeAccessIssue,reportPrivateUsage]
        for part in found:
            part.compile(**options)
        return len(found)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, for `load_model`; keep what parts hold in ``transient``, a list of tensors that a run needs
        to go on and a finished model does not."""
        checkpoint[_CLASS_KEY] = _name_of(self)
        held = {name: getattr(part, "transient", []) for name, part in self.named_modules()}
        checkpoint[_TRANSIENT_KEY] = {name: list(tensors) for name, tensors in held.items() if tensors}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give parts back what they held."""
        for name, tensors in checkpoint.get(_TRANSIENT_KEY, {}).items():
            vars(self.get_submodule(name))["transient"] = [tensor.to(self.device) for tensor in tensors]


def describe(model: Model) -> dict[str, Any]:
    """``class``, a dotted name, and ``arguments``: what `build` needs to make such a model, without its weights."""
    return {"class": _name_of(model), "arguments": dict(model.hparams)}


def build(description: Mapping[str, Any]) -> Model:
    """The model that `describe` told of, its weights not loaded. Raises ValueError where that is none of ours."""
    name, arguments = description.get("class"), dict(description.get("arguments") or {})
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if not module.startswith("tldr.model."):
        raise ValueError(f"{name!r} is no class of tldr.model")
    found = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ValueError(f"{name!r} is no class of tldr.model")
    if isinstance(arguments.get("image"), Mapping):  # whoever has a description has the weights: no download
        arguments["image"] = {**arguments["image"], "pretrained": False}
    return found(**arguments)


def load_model(path: str | Path) -> Model:
    """The model of a checkpoint, in evaluation mode on the CPU. Raises ValueError where it is not one of ours."""
    file = Path(path)
    if file.is_dir():
        file = file / "model.ckpt"
    if not file.is_file():
        raise ValueError(f"no checkpoint at {file}; `python train.py ... out={file.parent}` writes one")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes fail the unpickler in any way
        raise ValueError(f"{file} is not a checkpoint of tldr's (loading runs no pickled code)") from error
    name = checkpoint.get(_CLASS_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(name, str) or not name.startswith("tldr.model."):
        raise ValueError(f"{file} is not a checkpoint of tldr's (it names no class of tldr.model)")
    model = build({"class": name, "arguments": checkpoint["hyper_parameters"]})
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


@runtime_checkable
class Joint(Protocol):
    """What the backbone of a head offers: a feature of picture and text together, of width J."""

    joint_width: int

    def joint(self, images: Tensor, captions: Sequence[str], *, place: int = 0) -> Tensor:
        """(B, 3, H, W) and B texts -> (B, J)."""
        ...


@runtime_checkable
class Taught(Protocol):
    """What a model has that learned from a teacher."""

    def keep_student(self) -> None:
        """Forget the teacher."""
        ...


def open_backbone(backbone: str | Path | Mapping[str, Any], image: Mapping[str, Any]) -> Model:
    """The model of one of our checkpoints, or one built from a description by `describe`, with random weights. From a
    head's checkpoint, take the backbone that the head has tuned. ``image`` overrides arguments of its image encoder
    (None: unchanged); for another picture size its positions are interpolated. A teacher is dropped."""
    trained = None if isinstance(backbone, Mapping) else _student_of(backbone)
    image = {name: value for name, value in image.items() if value is not None}
    if trained is not None and not image:
        return trained
    description = describe(trained) if trained is not None else dict(cast(Mapping[str, Any], backbone))
    arguments = dict(description.get("arguments") or {})
    if image and not isinstance(arguments.get("image"), Mapping):
        name = str(description.get("class")).rpartition(".")[2]
        raise ValueError(f"backbone: a {name} has no image encoder of its own to change (image)")
    if image:
        arguments["image"] = {**arguments["image"], **image}
    model = _untaught(build({**description, "arguments": arguments}))
    if trained is not None:
        model.load_state_dict(resized(trained.state_dict(), model))
    return model


def _student_of(path: str | Path) -> Model:
    """The model of a checkpoint, or the backbone that the head in it has tuned, free of what that head froze."""
    model = load_model(path)
    tuned = getattr(model, "backbone", None)
    if not isinstance(tuned, Model):
        return _untaught(model)
    student, state = _untaught(build(describe(tuned))), tuned.state_dict()
    if student.state_dict().keys() != state.keys():
        name = f"{type(model).__name__} of {path}"
        raise ValueError(f"backbone: the {name} has changed its backbone (fusion=twin); give the one it started from")
    student.load_state_dict(state)
    return student.eval()


def _untaught(model: Model) -> Model:
    """The model without its teacher and with nothing frozen: a head's loss may reach what its own losses do not."""
    if isinstance(model, Taught):
        model.keep_student()
    return model.requires_grad_(True)


def _name_of(model: Model) -> str:
    """The dotted name of a model's own class, which sharding replaces by a generated subclass."""
    kind = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    return f"{kind.__module__}.{kind.__qualname__}"
