"""Paragraphs by a dense captioner of the user's choice, any image-to-text checkpoint that ``transformers`` opens, in
addition to the captions or instead of them.

Re-captioning of web pairs by a larger model that describes at length, as in ShareGPT4V (Chen et al. 2023, arXiv
2311.12793) and Recap-DataComp-1B (Li et al. 2024, arXiv 2406.08478). Such models need seconds for each picture, so what
they write is kept on disk, and a killed run resumes after the last complete part:

    <folder>/<hash of checkpoint, prompt and settings>/part-00000.parquet, ...     picture, text

A picture is known by the digest of its bytes (in pools read with ``verify=decode``: another selection or another pool
finds it again), else by pool, root and locator. A picture with several captions is described once.

Shapes: n pairs of the subset.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from PIL.Image import Image
from tqdm import tqdm

from tldr.atomic import atomic_path, write_json
from tldr.check import check_number
from tldr.data.images import ImageError, ImageStore
from tldr.ledger import Meter, charge, metered
from tldr.pairs import DIGEST, Pairs
from tldr.refiner.base import Refiner, Writer, better, check_joiner, check_margin
from tldr.signal.panel import MAIN

MODES = ("append", "replace", "best")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Paragraph(Refiner):
    """``checkpoint`` is a folder or a Hugging Face id. ``prompt`` is what the checkpoint is asked (a chat model wants
    one), or how its text begins (BLIP); it is no part of the paragraph. ``generation`` has further arguments of
    ``generate``, such as ``num_beams``; where those draw, they draw by ``seed``.

    ``mode``: ``append`` the paragraph after the caption and ``joiner``; ``replace`` the caption; the ``best`` of both,
    the paragraph where the main scorer's alignment puts it ahead by more than ``margin`` nats (it reads no more than
    its ``text.max_length`` tokens).
    """

    def __init__(
        self,
        *,
        checkpoint: str | None,
        folder: str | Path,
        prompt: str = "",
        mode: str = "append",
        joiner: str = "; ",
        margin: float = 2.0,
        max_new_tokens: int = 128,
        generation: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        rows_per_part: int = 256,
        dtype: str = "auto",
        seed: int = 0,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"refiner.mode={mode!r}; choose from {', '.join(MODES)}")
        check_joiner(joiner)
        check_margin(margin)
        self.mode, self.joiner, self.margin = mode, joiner, margin
        self.needs_writer = mode == "best"
        options = {"max_new_tokens": max_new_tokens, **(generation or {})}
        self.captioner = DenseCaptioner(checkpoint, prompt, options, dtype=dtype)
        self.folder, self.batch_size, self.rows_per_part, self.seed = Path(folder), batch_size, rows_per_part, seed
        numbers = {"batch_size": batch_size, "rows_per_part": rows_per_part, "max_new_tokens": max_new_tokens}
        for name, number in numbers.items():
            check_number(f"refiner.{name}", number, "a whole number, at least 1", low=1, whole=True)

    def __call__(self, subset: Pairs, writer: Writer | None) -> Pairs:
        """The same pairs with paragraphs. ``writer``, the main scorer, only judges, and only in mode ``best``."""
        return super().__call__(subset, _Describer(self, writer))

    def refine(self, subset: Pairs, generated: Sequence[str], writer: Writer) -> list[str]:
        """Caption, paragraph, or both, of each pair."""
        if self.mode == "replace":
            return list(generated)
        pairs = zip(subset.captions.to_pylist(), generated, strict=True)
        if self.mode == "append":
            return [f"{old.rstrip()}{self.joiner}{new}" if new else old for old, new in pairs]
        return better(subset, generated, writer, self.margin)

    def describe(self, subset: Pairs) -> list[str]:
        """n paragraphs: those in the cache, and what is missing there, written part by part."""
        folder = self.folder / hashlib.blake2b(self.captioner.identity(self.seed), digest_size=8).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        names = _pictures(subset)
        with FileLock(folder / "lock"):  # a job of a sweep finds what the one before it has written
            parts = sorted(folder.glob("part-*.parquet"))
            first = {name: row for row, name in reversed(list(enumerate(names)))}
            known: dict[str, str] = {}
            for part in parts:
                known |= zip(*_columns(part), strict=True)
                charge(_share(part, first))
            todo = sorted(row for name, row in first.items() if name not in known)
            number = 1 + int(parts[-1].stem.removeprefix("part-")) if parts else 0
            with tqdm(total=len(todo), desc="writing paragraphs", unit="picture", disable=not todo) as bar:
                for start in range(0, len(todo), self.rows_per_part):
                    rows = todo[start : start + self.rows_per_part]
                    begun = time.perf_counter()
                    with metered(device=self.device) as meter:
                        texts = self._part(subset, rows, f"{self.seed}:{names[rows[0]]}", bar, meter)
                    cost = {"seconds": round(time.perf_counter() - begun, 3), "flops": meter.flops}
                    table = {"picture": [names[row] for row in rows], "text": texts}
                    part = folder / f"part-{number:05d}.parquet"
                    write_json(_cost(part), cost)
                    with atomic_path(part) as temporary:
                        pq.write_table(pa.table(table), temporary)
                    known |= zip(*table.values(), strict=True)
                    number += 1
        return [known[name] for name in names]

    def _part(self, subset: Pairs, rows: list[int], name: str, bar: tqdm, meter: Meter) -> list[str]:
        """The paragraphs of these rows. What is drawn depends on them and on ``name``: a text that was drawn is that of
        the run that wrote it first."""
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
        store, texts = ImageStore(subset.root), []
        with torch.random.fork_rng([self.device] if self.device.startswith("cuda") else []):
            torch.manual_seed(seed)
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                pictures = [_picture(store, subset, row) for row in batch]
                with meter.batch(len(batch)):
                    texts += self.captioner.describe(pictures, self.device)
                bar.update(len(batch))
        return texts


class _Describer:
    """A `Writer` that describes pictures at length, and leaves judgement to ``judge``."""

    def __init__(self, refiner: Paragraph, judge: Writer | None) -> None:
        self.refiner, self.judge = refiner, judge

    def write(self, pairs: Pairs) -> list[str]:
        return self.refiner.describe(pairs)

    def align(self, pairs: Pairs, scorer: str = MAIN) -> np.ndarray:
        assert self.judge is not None, "mode=best needs a writer, and says so"
        return self.judge.align(pairs, scorer)


class DenseCaptioner:
    """The checkpoint, its processor and its settings. The configuration is read at once, so that a wrong name costs no
    scorer's training first; the weights when the first picture is to be described."""

    def __init__(self, checkpoint: str | None, prompt: str, options: Mapping[str, Any], *, dtype: str) -> None:
        if not checkpoint:
            raise ValueError(
                "refiner=paragraph needs a dense captioner: refiner.checkpoint=<folder or Hugging Face id of an "
                "image-to-text model>"
            )
        if dtype not in DTYPES:
            raise ValueError(f"refiner.dtype={dtype!r}; choose from {', '.join(DTYPES)}")
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig  # here: no other refiner waits for it

        try:
            config = AutoConfig.from_pretrained(checkpoint)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"refiner.checkpoint={checkpoint} is neither a folder nor a reachable Hugging Face id with a "
                "config.json that transformers knows"
            ) from error
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(
                f"refiner.checkpoint={checkpoint} is a {config.model_type}, which writes no text about pictures "
                "(transformers' AutoModelForImageTextToText); give a BLIP, GIT or LLaVA, for example"
            )
        self.checkpoint, self.prompt, self.options = str(checkpoint), prompt.strip(), dict(options)
        self.dtype: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
        self.revision = getattr(config, "_commit_hash", None)  # of an id
        self.model: Any = None

    def identity(self, seed: int) -> bytes:
        """All that the texts depend on beside the pictures. Of a folder: names, sizes and times of its files."""
        files = [file for file in sorted(Path(self.checkpoint).glob("*")) if file.is_file()]
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        facts = (self.checkpoint, self.revision, stamps, self.prompt, self.options, str(self.dtype), seed)
        return json.dumps(facts, sort_keys=True, default=str).encode()

    def load(self) -> Any:
        """Open the processor, return the model. Raises ValueError where the prompt does not go with the checkpoint."""
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
        from transformers.processing_utils import ProcessorMixin

        self.processor: Any = AutoProcessor.from_pretrained(self.checkpoint)
        self.whole = isinstance(self.processor, ProcessorMixin)
        if self.whole:
            self.tokenizer: Any = self.processor.tokenizer
        else:  # a vision encoder and a decoder, saved each with its own half
            self.processor = AutoImageProcessor.from_pretrained(self.checkpoint)
            self.tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        self.chat = self.whole and bool(self.processor.chat_template)
        if self.chat and not self.prompt:
            raise ValueError(
                f"refiner.checkpoint={self.checkpoint} is a chat model and needs a prompt: "
                "refiner.prompt='Describe this picture in detail.'"
            )
        if self.prompt and not self.whole:
            raise ValueError(f"refiner.checkpoint={self.checkpoint} reads pictures alone; leave refiner.prompt empty")
        self.tokenizer.padding_side = "left"  # what is written follows the prompt
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        model: Any = AutoModelForImageTextToText.from_pretrained(self.checkpoint, dtype=self.dtype)
        return model.eval()

    @torch.inference_mode()
    def describe(self, images: list[Image], device: str) -> list[str]:
        """A paragraph for each RGB picture, on one line."""
        model = self.model = self.model or self.load().to(device)
        inputs = self._inputs(images).to(model.device, model.dtype)
        prompt = inputs["input_ids"].clone() if "input_ids" in inputs else None  # BLIP writes into its input
        written = model.generate(**inputs, **self.options)
        if prompt is not None and not model.config.is_encoder_decoder:
            written = _without(prompt, written)
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def _inputs(self, images: list[Image]) -> Any:
        if self.chat:
            ask = {"type": "text", "text": self.prompt}
            talks = [[{"role": "user", "content": [{"type": "image", "image": image}, ask]}] for image in images]
            return self.processor.apply_chat_template(
                talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
            )
        text = {"text": [self.prompt] * len(images), "padding": True} if self.prompt else {}
        return self.processor(images=images, return_tensors="pt", **text)


def _without(prompt: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Decoders give the prompt (B, T) again before what they write; BLIP without the end of text that it had."""
    for length in (prompt.shape[1], prompt.shape[1] - 1):
        if length > 1 and torch.equal(written[:, 1:length], prompt[:, 1:length]):  # the first token may be another
            return written[:, length:]
    return written


def _pictures(subset: Pairs) -> list[str]:
    """n names, the same for the same picture only."""
    if DIGEST in subset.table.column_names and not subset.table[DIGEST].null_count:
        return subset.table[DIGEST].to_pylist()
    pool = subset.provenance.get("pool", subset.hash)
    return [f"{pool}:{subset.root}:{locator}" for locator in subset.images.to_pylist()]


def _picture(store: ImageStore, subset: Pairs, row: int) -> Image:
    try:
        return store.load(subset.images[row].as_py())
    except ImageError as failure:
        uid = subset.uids[row].as_py()
        raise ValueError(f"pair {uid}: {failure}; reduce the data again with verify=decode") from failure


def _share(part: Path, wanted: Container[str]) -> dict[str, float]:
    """What the ``wanted`` pictures' texts in a part took, as far as it says; those of many pools may be in it."""
    file = _cost(part)
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    pictures = pq.read_table(part, columns=["picture"])["picture"].to_pylist()
    share = sum(picture in wanted for picture in pictures) / max(1, len(pictures))
    return {name: share * told.get(name, 0.0) for name in ("seconds", "flops")}


def _cost(part: Path) -> Path:
    return part.with_suffix(".cost.json")


def _columns(part: Path) -> tuple[list[str], list[str]]:
    table = pq.read_table(part)
    return table["picture"].to_pylist(), table["text"].to_pylist()
