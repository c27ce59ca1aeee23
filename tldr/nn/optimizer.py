"""AdamW as vision-language pre-training uses it: which weights decay, at what rate each learns, and when.

Weight decay is for matrices: not for norms, biases and other vectors, nor for embeddings of positions and class tokens
(a captioner's null picture decays).
``layer_decay`` (BEiT, Bao et al. 2022, arXiv 2106.08254) lets the early layers of a pretrained tower learn more slowly,
by that factor a layer. Schedules, after a linear warm-up:

    cosine    to ``min_lr`` at the end of the run (CLIP, fine-tuning)
    linear    likewise, in a straight line (ViLT)
    step      times ``decay_rate`` every ``decay_steps`` of the run, not below ``min_lr`` (BLIP: 0.85 an epoch; 0.9 in
              its code); the warm-up lies within the first of them
    constant
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from tldr.check import check_number

SCHEDULES = ("cosine", "linear", "step", "constant")

_LAYER = re.compile(r"(?:(?P<tower>.*?)\.)?(?:blocks|layers)\.(?P<number>\d+)\.")
_PLACES = {"pos_embed", "cls_token", "reg_token", "positions"}  # timm's names, and ours
_BOTTOM = _PLACES | {"patch_embed", "norm_pre", "words", "types"}  # what comes before the first layer


def adamw(
    module: nn.Module,
    *,
    total_steps: int,
    lr: float,
    weight_decay: float = 0.05,
    betas: Sequence[float] = (0.9, 0.98),
    eps: float = 1e-8,
    warmup_steps: float = 0,
    min_lr: float = 0.0,
    schedule: str = "cosine",
    decay_rate: float = 0.9,
    decay_steps: int | None = None,
    layer_decay: float = 1.0,
    head_lr_scale: float = 1.0,
    heads: Sequence[str] = (),
) -> dict[str, Any]:
    """AdamW and its scheduler, stepped every optimiser step, as Lightning takes them.

    ``warmup_steps`` below 1 is a share of the ``total_steps``. ``head_lr_scale`` multiplies the rate of parameters
    whose names begin with one of ``heads``. Raises ValueError naming the option and its choices.
    """
    check_number("optimizer.lr", lr, "above 0: it is the peak rate", low=math.ulp(0.0))
    warm = round(warmup_steps * total_steps) if 0 < warmup_steps < 1 else int(warmup_steps)
    if warm > total_steps:
        rank_zero_only(print)(
            f"optimizer.warmup_steps={warm} is more than the {total_steps} steps of the run: it ends at "
            f"{total_steps / warm:.0%} of lr={lr}; train longer, or warm up for less (0.1: a tenth of the run)"
        )
    factor = rate(
        schedule,
        total_steps=total_steps,
        warmup_steps=warm,
        floor=min_lr / lr,
        decay_rate=decay_rate,
        decay_steps=decay_steps,
    )
    if not 0 < layer_decay <= 1:
        raise ValueError(f"optimizer.layer_decay={layer_decay}; take 1 (none) or less, such as 0.75")
    if head_lr_scale != 1 and not heads:
        raise ValueError(f"optimizer.head_lr_scale={head_lr_scale}, but {type(module).__name__} declares no head")
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    scales = depth_scales([name for name, _ in trained], layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        scale = scales[name] * (head_lr_scale if name.startswith(tuple(heads)) else 1.0)
        decays = parameter.ndim > 1 and not _PLACES & set(name.split("."))
        groups.setdefault((weight_decay if decays else 0.0, scale), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": held, "weight_decay": decay, "lr": lr * scale} for (decay, scale), held in groups.items()],
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def rate(
    schedule: str,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    floor: float = 0.0,
    decay_rate: float = 0.9,
    decay_steps: int | None = None,
) -> Callable[[int], float]:
    """The learning rate at a step, as a share of the highest; ``floor`` is the least of it after the warm-up."""
    if schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={schedule!r}; choose from {', '.join(SCHEDULES)}")
    if schedule == "step" and not decay_steps:
        raise ValueError("optimizer.schedule=step needs optimizer.decay_steps: the steps of an epoch, for BLIP")
    if schedule == "step" and warmup_steps > (decay_steps or 1):
        raise ValueError(
            f"optimizer.warmup_steps={warmup_steps} is more than optimizer.decay_steps={decay_steps}: the rate would "
            "drop at once by all the decays that the warm-up has passed; lower warmup_steps"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        if schedule == "step":
            return max(floor, decay_rate ** (step // (decay_steps or 1)))
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        fallen = done if schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
        return floor + (1 - floor) * (1 - fallen)

    return factor


def depth_scales(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """For every parameter's name, layer_decay ** (layers above it in its tower).

    A tower is a module with ``blocks`` or ``layers``. What enters its first layer counts as below all layers, what
    leaves its last one as above them. So does everything outside of towers, except the embeddings of words and patches
    if there is only one tower: they count as below its layers.
    """
    names = list(names)
    depth: dict[str, int] = {}
    for match in filter(None, map(_LAYER.match, names)):
        tower = match["tower"] or ""
        depth[tower] = max(depth.get(tower, 0), int(match["number"]) + 1)
    with_words = {name.partition("words.")[0] for name in names if name.endswith("words.weight")}

    def below(name: str) -> int:
        match = _LAYER.match(name)
        if match:
            return depth[match["tower"] or ""] - int(match["number"])
        first_norm = any(name.startswith(f"{start}norm.") for start in with_words)  # BERT's, over the embeddings
        if not first_norm and not _BOTTOM & set(name.split(".")):
            return 0
        towers = [tower for tower in depth if not tower or name.startswith(f"{tower}.")]
        towers = towers or (list(depth) if len(depth) == 1 else [])
        return max((depth[tower] + 1 for tower in towers), default=0)

    return {name: layer_decay ** below(name) for name in names}
