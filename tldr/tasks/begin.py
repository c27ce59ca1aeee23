"""Where a model begins: at random, or from checkpoints that are ours or the ecosystem's (``init_from``).

A checkpoint fixes part of the architecture: its arguments stand in for the configured ones, so that
``model=blip init_from=Salesforce/blip-itm-base-coco`` has BLIP's sizes whatever ``conf/`` says. Several checkpoints
fill several towers: ``init_from=[bert-base-uncased, timm/vit_base_patch16_224.augreg_in21k]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tldr.model.base import Model, load_model
from tldr.tasks.resume import flat

# How a tower or a codebook is trained, and what it is shown, whatever it began from.
TRAINING = ("dropout", "drop_path", "gradient_checkpointing", "resize_mode")
TRAINING += ("decay", "commitment", "dead_below", "rotation_trick")


class Beginning:
    """How to build a model (``model`` is a partial of its class) from ``init_from``, with pictures of ``image_size``
    (None: as configured, or as the checkpoint has them)."""

    def __init__(
        self,
        model: Callable[..., Model],
        init_from: str | Path | Sequence[str | Path] | None = None,
        *,
        image_size: int | None = None,
    ) -> None:
        self.model = model
        kind: Any = getattr(model, "func", model)
        self.learns_tokenizer: bool = getattr(kind, "learns_tokenizer", True)
        several = [init_from] if isinstance(init_from, str | Path) else list(init_from or [])
        self.sources = []
        if several:
            from tldr.hub.checkpoint import read  # here: who begins at random needs no transformers

            self.sources = [(str(source), read(source, kind.__name__)) for source in several]
        given: Mapping[str, Any] = getattr(model, "keywords", {})
        self.changes: dict[str, Any] = {}
        fixed = {key for _, weights in self.sources for key in weights.arguments}
        for _, weights in self.sources:
            self.changes = _merged(self.changes, weights.arguments)
            if "image" in weights.arguments:  # no download of what is replaced
                self.changes = _merged(self.changes, {"image": {"pretrained": False}})
        if image_size is not None:
            if "image" not in given and "image" not in self.changes:
                raise ValueError(
                    f"image_size={image_size}, but {kind.__name__} has no image tower of its own to resize"
                )
            self.changes = _merged(self.changes, {"image": {"image_size": image_size}})
        for key, value in self.changes.items():
            configured = given.get(key)
            if value is None and configured is not None:
                names = " and ".join(source for source, _ in self.sources)
                raise ValueError(
                    f"init_from: {names} has no {key}, and model.{key} asks for one: set model.{key}=null, or begin "
                    "from a model that has one"
                )
            if isinstance(value, Mapping) and isinstance(configured, Mapping):
                # A source's tower replaces the configured one; image_size alone only changes it.
                base = configured if key not in fixed else {k: v for k, v in configured.items() if k == "max_length"}
                own = {k: v for k, v in configured.items() if k in TRAINING}
                if "max_length" in configured and "max_length" in value:  # positions can be cut, not invented
                    own["max_length"] = min(configured["max_length"], value["max_length"])
                self.changes[key] = {**base, **value, **own}
        wanted = dict(flat({key: given[key] for key in fixed if key in given}, "model."))
        has = dict(flat(self.changes, "model."))
        if image_size is not None:  # which decides that itself
            has.pop("model.image.image_size")
        self.overruled = {key: (value, has[key]) for key, value in wanted.items() if has.get(key, value) != value}

    def tell(self) -> None:
        """Print where a checkpoint's architecture overrides the configured one."""
        if self.overruled:
            told = [f"{key}={has} (not {asked})" for key, (asked, has) in sorted(self.overruled.items())]
            more = f" and {len(told) - 4} more" if len(told) > 4 else ""
            print(f"init_from: the checkpoint overrides the configuration: {', '.join(told[:4])}{more}")

    @property
    def tokenizer(self) -> str | None:
        """The first that a source brings, as JSON."""
        return next((weights.tokenizer for _, weights in self.sources if weights.tokenizer), None)

    def build(self, tokenizer: str | None) -> Model:
        """The model with the sources' weights in it; says what they leave to chance."""
        module = self.model(**self.changes) if tokenizer is None else self.model(**self.changes, tokenizer=tokenizer)
        if not self.sources:
            return module
        from tldr.hub.checkpoint import initialise

        left: list[str] | None = None
        for source, weights in self.sources:
            fresh = initialise(module, weights)
            print(f"{source}: {len(weights.state)} arrays for {type(module).__name__}")
            left = fresh if left is None else [name for name in left if name in set(fresh)]
        if left:
            print(f"in no checkpoint, newly initialised: {', '.join(sorted(left))}")
            module.left_to_chance = tuple(sorted(left))
        return module


def open_model(checkpoint: str | Path, model: Callable[..., Model] | None = None) -> Model:
    """Open a model for inference, in evaluation mode: from a checkpoint of ours, or from a published one that ``model``
    can be initialised from. Raises ValueError for one that is neither, or has no tokenizer."""
    path = Path(checkpoint)
    if path.suffix == ".ckpt" or (path / "model.ckpt").is_file():
        return load_model(path)
    if model is None:
        raise ValueError(
            f"no checkpoint of ours at {path}: `python train.py ... out={path}` writes one. To open a published one "
            "(folder or Hugging Face id), name a model that can begin from it: model=clip, blip, vilt, captioner, ..."
        )
    beginning = Beginning(model, checkpoint)
    if beginning.learns_tokenizer and beginning.tokenizer is None:
        raise ValueError(f"{checkpoint} has no tokenizer, without which its words mean nothing: add tokenizer.json")
    return beginning.build(beginning.tokenizer).eval()


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``other`` over ``one``, group by group."""
    merged = dict(one)
    for key, value in other.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = {**before, **value} if both else value  # pyright: ignore[reportGeneralTypeIssues]
    return merged
