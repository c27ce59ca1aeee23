"""Speed of a training step: images/s, model FLOPs and their share of the matrix rate, for each model and size.

A step is forward, backward and AdamW on random pictures and captions, in bfloat16 on a GPU and in float32 on a CPU,
with and without torch.compile. Model FLOPs are those that the mathematics needs, counted from the operations of one
step without recomputation (but for attention's scores, which its backward pass always computes again); the matrix
rate is what this device reaches on large products of the same dtype, measured here. So the share says how much of the
machine the model has, whatever its data sheet promises.

A combination that the device cannot hold is skipped, one that cannot be built or run has failed: the table says why and
the others go on, but a run in which something failed ends with exit status 1. ``--out`` is written after every row.

    python benchmarks/train_step.py --models blip clip --sizes base --batch-sizes 64 128 --out speed.json
"""

from __future__ import annotations

import argparse
import gc
import logging
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from tldr.atomic import write_json
from tldr.data.tokenizer import Tokenizer
from tldr.ledger import flop_counter
from tldr.model.base import Model

CONF = Path(__file__).resolve().parents[1] / "conf"
MODELS = ("blip", "clip", "vilt", "captioner", "vqvlm")
SIZES = ("tiny", "small", "base", "large")
COLUMNS = ("model", "size", "batch", "compiled", "images/s", "ms", "TFLOP", "TFLOP/s", "share", "GiB")
WORDS = "a the red small two dog child street sign with under running green of in large wooden table and sky".split()


def build(name: str, size: str, *, pixels: int | None, checkpointing: bool) -> Model:
    """The model of conf/model in that size, as training begins; nothing is downloaded."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(overrides=[f"+model={name}", f"model/size={size}"]).model
    with open_dict(cfg):
        if "image" in cfg:
            cfg.image.update({"pretrained": False, "gradient_checkpointing": checkpointing})
            cfg.image.image_size = pixels or cfg.image.image_size
        if "text" in cfg:
            cfg.text.gradient_checkpointing = checkpointing
    model = instantiate(OmegaConf.to_container(cfg), _convert_="all")(tokenizer=vocabulary().json)
    if getattr(model, "quantizer", None) is not None:  # what most of a run is like: the codebook has joined
        model.quantizer.active.fill_(True)
    return model


def vocabulary() -> Tokenizer:
    """A tokenizer with as many entries as BERT's: the head over the words is a good part of a step."""
    tokenizer = Tokenizer.learn([*WORDS, *WORDS], vocab_size=512)
    inner = tokenizer._tokenizer  # pyright: ignore[reportPrivateUsage]
    inner.add_tokens([f"word{i}" for i in range(30_522 - len(tokenizer))])
    return Tokenizer(inner.to_str())


def batch_of(size: int, pixels: int, device: torch.device, *, words: int = 12) -> Any:
    """Random pictures, and captions as long as those of the web."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(WORDS), (size, words), generator=generator).tolist()
    return {
        "images": torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8, generator=generator).to(device),
        "captions": [" ".join(WORDS[i] for i in row) for row in picks],
        "rows": torch.arange(size),
        "image_ids": torch.arange(size, device=device),
        "errors": [""] * size,
        "columns": {},
    }


class Step:
    """One optimiser step of a model, without a Trainer around it."""

    def __init__(self, model: Model, batch: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.batch, self.dtype, self.device = model.train(), batch, dtype, device
        # The model asks its trainer for the step and the length of the run, and logs to it.
        stand_in = SimpleNamespace(global_step=1000, estimated_stepping_batches=10_000, world_size=1, global_rank=0)
        object.__setattr__(model, "_trainer", stand_in)
        for name in ("log", "log_dict", "log_now"):
            setattr(model, name, lambda *_, **__: None)
        made = model.configure_optimizers()
        self.optimizer: torch.optim.Optimizer = made["optimizer"]

    def forward_backward(self) -> None:
        """The losses and their gradients."""
        self.model.on_train_batch_start(self.batch, 0)  # BLIP's teacher moves
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            losses = self.model.losses(self.batch)
            total = torch.stack(list(losses.values())).sum()
        total.backward()

    def __call__(self) -> None:
        self.forward_backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, *, least: float, warmup: int = 3) -> float:
    """Seconds of one call, the median of as many as take ``least`` seconds (three or more)."""
    for _ in range(warmup):
        work()
    synchronise(device)
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begin < least:
        start = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def matrix_rate(device: torch.device, dtype: torch.dtype, *, least: float) -> float:
    """FLOP/s of a square matrix product, the best of several widths."""
    best = 0.0
    for width in (4096, 8192, 16384) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * width**3 / seconds(lambda a=a, b=b: a @ b, device, least=least))
    return best


def machine(device: torch.device) -> str:
    """The device, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        told = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = told[0] if told else name
    return f"{name}, {torch.get_num_threads()} threads"


@contextmanager
def memory_permitting() -> Iterator[list[str]]:
    """What the device cannot hold is skipped: the list then holds why."""
    why: list[str] = []
    try:
        yield why
    except (torch.OutOfMemoryError, MemoryError) as error:
        why.append(str(error).split(".")[0])
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        why.append(str(error))


def attempt(name: str, size: str, batch_size: int, compiled: bool, peak: float, given: argparse.Namespace) -> Any:
    """A row of the table: what was measured, or why it was ``skipped`` or has ``failed``."""
    row = {"model": name, "size": size, "batch": batch_size, "compiled": compiled}
    try:
        with memory_permitting() as why:
            return row | measure(name, size, batch_size, compiled, peak, given)
        return row | {"skipped": why[0]}
    except Exception as error:  # any: what ends one combination says nothing of the others
        traceback.print_exc()
        return row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def measure(
    name: str, size: str, batch_size: int, compiled: bool, peak: float, given: argparse.Namespace
) -> dict[str, float | None]:
    """What a combination takes, and how much of the ``peak`` FLOP/s it has."""
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    torch.manual_seed(0)
    counted = build(name, size, pixels=given.image_size, checkpointing=False)  # recomputing is no model FLOP
    pixels = counted.image_size
    step = Step(counted.to(device), batch_of(2, pixels, device), dtype, device)
    step.forward_backward()
    step.optimizer.zero_grad()
    with flop_counter() as few:
        step.forward_backward()
    step.batch = batch_of(4, pixels, device)
    with flop_counter() as more:
        step.forward_backward()
    slope = (more.get_total_flops() - few.get_total_flops()) / 2
    flops = few.get_total_flops() + slope * (batch_size - 2)  # a step is linear in its pairs, but for tiny products
    del step, counted
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = build(name, size, pixels=pixels, checkpointing=given.gradient_checkpointing).to(device)
    if compiled:
        model.compile_networks()
    step = Step(model, batch_of(batch_size, pixels, device), dtype, device)
    taken = seconds(step, device, least=given.seconds)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "images/s": batch_size / taken, "ms": 1000 * taken, "TFLOP": flops / 1e12, "TFLOP/s": flops / taken / 1e12,
        "share": flops / taken / peak, "GiB": memory,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a measurement."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [row.get(column) for column in COLUMNS]
        told = ["" if c is None else f"{c:.3g}" if isinstance(c, float) and c < 100 else f"{c:.0f}"
                if isinstance(c, float) else {True: "yes", False: "no"}.get(c, str(c)) for c in cells]  # fmt: skip
        missed = next((f"{how}: {row[how]}" for how in ("skipped", "failed") if how in row), None)
        told[8] = missed or f"{row['share']:.1%}"
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run it; see the module's docstring."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="of conf/model")
    parser.add_argument("--sizes", nargs="+", default=["small", "base", "large"] if gpu else ["tiny"], choices=SIZES)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64] if gpu else [32])
    parser.add_argument("--compile", nargs="+", default=["no", "yes"] if gpu else ["no"], choices=["no", "yes"])
    parser.add_argument("--image-size", type=int, help="pixels; else the size's own")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure each step for")
    parser.add_argument("--out", type=Path, help="JSON of the table")
    given = parser.parse_args(arguments)

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*TensorFloat32 tensor cores.*")
    device = torch.device(given.device)
    peak = matrix_rate(device, getattr(torch, given.dtype), least=min(2.0, given.seconds))
    print(f"{machine(device)}: {peak / 1e12:.2f} TFLOP/s in {given.dtype} matrix products; torch {torch.__version__}")
    about = {"machine": machine(device), "dtype": given.dtype, "matrix_tflops": peak / 1e12, "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    for name in given.models:
        for size in given.sizes:
            for batch_size in given.batch_sizes:
                for compiled in given.compile:
                    rows.append(attempt(name, size, batch_size, compiled == "yes", peak, given))
                    if given.out:
                        write_json(given.out, {**about, "rows": rows})
                    print("\n".join(table(rows[-1:]).splitlines()[2:]), flush=True)
                    gc.collect()
                    torch.compiler.reset()
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
    print("\n" + table(rows))
    if given.out:
        print(f"wrote {given.out}")
    failed = [f"{row['model']} {row['size']}" for row in rows if "failed" in row]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(rows)} combinations failed: {', '.join(dict.fromkeys(failed))}")


if __name__ == "__main__":
    main()
