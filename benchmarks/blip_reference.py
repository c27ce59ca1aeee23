"""BLIP's pre-training beside its authors' code: how far apart are the losses, and which of the two is faster?

    git clone https://github.com/salesforce/BLIP
    python benchmarks/blip_reference.py --source BLIP

Both get the same weights, teacher, queue and batch, no dropout, and the likeliest negatives instead of random ones. Our
deliberate differences are switched off: pooling over tokens, the ramps, a queue that begins empty, several captions of
a picture. Differences of gradients, teachers and queues are relative to the largest entry of each tensor.

Speed is measured on whole steps (forward, backward, AdamW), alternating between both. Theirs pads every caption to 30
tokens, ours to the longest of the batch: ``--words`` sets the length of the captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from _blip_code import by_their_names, modules_of, teacher_by_their_names, theirs_of
from _results import markdown
from torch import Tensor, nn
from train_step import Step, batch_of, machine, seconds, vocabulary

from tldr.atomic import write_json
from tldr.model.blip import Blip

LONGEST = 30  # tokens, to which their code pads every caption
EMBED_DIM = 256
SMALL = (64, 3, 48, 12)  # width, depth, pixels and pairs that losses are compared at
ALPHAS = (0.0, 0.4)
AFTER = ("gradients", "teacher", "queue")
ADAMW: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.05}


def ours_of(width: int, depth: int, pixels: int, *, queue: int) -> Blip:
    """A Blip as published but for its size: ViT of 16-pixel patches, heads of 64 (or, where that does not go, 32)."""
    heads = width // 64 if width % 64 == 0 else width // 32
    image = {"backbone": "vit", "image_size": pixels, "width": width, "depth": depth, "heads": heads}
    text = {"width": width, "depth": depth, "heads": heads, "max_length": LONGEST}
    towers: dict[str, Any] = {"image": image, "text": text, "embed_dim": EMBED_DIM}
    return Blip(tokenizer=vocabulary().json, **towers, optimizer=ADAMW, queue_size=queue, alpha_ramp=0.0)


def normalised(ours: Blip, images: Tensor) -> Tensor:
    """(B, 3, H, W) bytes as both see them in the end."""
    encoder: Any = ours.encoders.image
    return (images / 255 - encoder.mean) / encoder.std


@torch.no_grad()
def fill(queue: Any) -> None:
    """As theirs begins: full of random directions, none of them of a picture of the batch."""
    for keys in (queue.image, queue.text):
        keys.copy_(nn.functional.normalize(torch.randn_like(keys), dim=1))
    queue.ids.copy_(-1 - torch.arange(queue.size))
    queue.added.fill_(queue.size)


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of any entry, in parts of its tensor's largest."""
    return max(float((ours[name] - value).abs().max() / value.abs().max()) for name, value in theirs.items())


def compare(modules: tuple[Any, Any], alpha: float) -> dict[str, Any]:
    """Losses of one batch, and how far gradients, teachers and queues are `apart` after it."""
    torch.manual_seed(0)
    width, depth, pixels, pairs = SMALL
    ours = ours_of(width, depth, pixels, queue=5 * pairs)
    ours.alpha = alpha
    with torch.no_grad():
        for weight in ours.parameters():  # also those that begin as zeros and ones; the teacher is not the student
            weight.add_(0.2 * torch.randn_like(weight))
        ours.temperature.fill_(0.07)
    fill(ours.queue)
    theirs = theirs_of(ours, modules).train()
    batch = batch_of(pairs, pixels, torch.device("cpu"), words=LONGEST - 2)
    batch["captions"] = [" ".join(text.split()[: 4 + 2 * i]) for i, text in enumerate(batch["captions"])]
    Step(ours, batch, torch.float32, torch.device("cpu"))  # stands in for the Trainer
    with patch.object(torch, "multinomial", lambda weights, _, **__: weights.argmax(-1, keepdim=True)):
        ours.on_train_batch_start(batch, 0)
        mine = ours.losses(batch)
        their = dict(zip(mine, theirs(normalised(ours, batch["images"]), batch["captions"], alpha), strict=True))
    for losses in (mine, their):
        torch.stack(list(losses.values())).sum().backward()
    reached = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
    gradients = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    gradients = {name: g for name, g in gradients.items() if not name.endswith(".key.bias")}  # but for rounding, zero
    teacher, state = teacher_by_their_names(ours, depth), theirs.state_dict()
    return {
        "alpha": alpha,
        "losses": {name: (mine[name].item(), their[name].item()) for name in mine},
        "gradients": apart(by_their_names(reached, depth) | {"temp": reached["temperature"]}, gradients),
        "teacher": apart(teacher, {name: state[name] for name in teacher}),
        "queue": apart(
            {"image": ours.queue.image.T, "text": ours.queue.text.T},
            {"image": theirs.image_queue, "text": theirs.text_queue},
        ),
    }


def race(modules: tuple[Any, Any], shape: str, words: int, given: argparse.Namespace) -> dict[str, Any]:
    """Images/s of a whole step of either, in turns."""
    print(f"measuring steps of {shape}, captions of {words} words", flush=True)
    width, depth, pixels, pairs = map(int, shape.split("x"))
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    torch.manual_seed(0)
    ours = ours_of(width, depth, pixels, queue=20 * pairs)
    fill(ours.queue)
    theirs = theirs_of(ours, modules).to(device).train()
    batch = batch_of(pairs, pixels, device, words=words)
    step = Step(ours.to(device), batch, dtype, device)
    optimizer = torch.optim.AdamW(theirs.parameters(), **ADAMW)

    def their_step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = theirs(normalised(ours, batch["images"]), batch["captions"], ours.alpha)
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(given.turns):
        for name, work in (("ours", step), ("theirs", their_step)):
            taken[name].append(seconds(work, device, least=given.seconds / given.turns, warmup=1))
    row = {name: pairs / median(times) for name, times in taken.items()}
    return {"shape": shape, "words": words, **row, "ratio": row["ours"] / row["theirs"]}


def told(parity: list[dict[str, Any]], speed: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = [["alpha", "", "ours", "theirs", "apart"]]
    for found in parity:
        alpha = f"{found['alpha']:g}"
        for name, (mine, their) in found["losses"].items():
            lines.append([alpha, name.upper(), f"{mine:.7f}", f"{their:.7f}", f"{abs(mine - their):.1e}"])
        lines += [[alpha, name, "", "", f"{found[name]:.1e}"] for name in AFTER]
    rows = [["width x depth x pixels x batch", "words", "ours, images/s", "theirs", "ratio"]]
    for row in speed:
        rows.append([row["shape"], str(row["words"]), *(f"{row[name]:.3g}" for name in ("ours", "theirs", "ratio"))])
    return markdown(lines) + "\n\n" + markdown(rows)


def main(arguments: list[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a clone of salesforce/BLIP")
    parser.add_argument("--shapes", nargs="*", metavar="WIDTHxDEPTHxPIXELSxBATCH",
                        default=["768x12x224x64"] if gpu else ["96x2x64x64", "192x6x224x16"])  # fmt: skip
    parser.add_argument("--words", nargs="+", type=int, default=[7, 28], help="of every caption")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure each step for")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON of both tables")
    given = parser.parse_args(arguments)

    modules = modules_of(given.source)
    parity = [compare(modules, alpha) for alpha in ALPHAS]
    speed = [race(modules, shape, words, given) for shape in given.shapes for words in given.words]
    about = {"machine": machine(torch.device(given.device)), "dtype": given.dtype, "torch": torch.__version__}
    print(f"{about['machine']}, {given.dtype}\n\n{told(parity, speed)}")
    if given.out:
        write_json(given.out, {**about, "parity": parity, "speed": speed})


if __name__ == "__main__":
    main()
