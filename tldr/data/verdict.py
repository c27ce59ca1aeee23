"""Checks that pictures can be read. Every distinct one is decoded once, in threads (Pillow releases the interpreter's
lock while decoding), and the verdict is cached by the picture's locator and its file's size and modification time: a
second run decodes only what is new or changed, and what another version of Pillow could not decode. An interrupted run
keeps its verdicts; several runs may check the same source at the same time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from tldr.atomic import atomic_path
from tldr.data.images import ImageError, ImageStore, decode

VERDICT = pa.schema(
    {
        "locator": pa.large_string(),
        "size": pa.int64(),  # of the file that holds the picture, like its modification time
        "mtime_ns": pa.int64(),
        "digest": pa.large_string(),  # blake2b-128 of the picture's bytes
        "error": pa.large_string(),  # null: it can be read
        "decoder": pa.large_string(),  # the version of Pillow, and its limit of pixels
    }
)
_BLOCK = 64
_SAVE_SECONDS = 300

_T = TypeVar("_T")
_U = TypeVar("_U")


def verdicts(
    store: ImageStore,
    locators: pa.Array,
    *,
    decoding: bool = True,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[pa.Table, int]:
    """A `VERDICT` for each of the distinct ``locators``, in their order, and how many pictures were decoded for it.

    Without ``decoding``, only the files are asked for: no digest, nothing remembered.
    """
    file = None
    known = VERDICT.empty_table()
    if cache is not None and decoding:
        key = hashlib.blake2b(store.root.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        file = Path(cache) / "images" / f"{key}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        known = _remembered(file)
    before = known.take(pc.index_in(locators, known["locator"])).set_column(0, "locator", locators)
    blocks = (before.slice(start, _BLOCK) for start in range(0, len(locators), _BLOCK))
    workers = workers or (os.cpu_count() or 1) + 4  # some wait for the disk
    batches: list[pa.RecordBatch] = []
    decoded = 0
    due = time.monotonic() + _SAVE_SECONDS

    def save() -> None:
        if file is not None and decoded:
            fresh = pa.Table.from_batches(batches, VERDICT).combine_chunks()
            with FileLock(f"{file}.lock"):  # another process may have written meanwhile
                there = _remembered(file)
                others = there.filter(pc.invert(pc.is_in(there["locator"], fresh["locator"])))
                with atomic_path(file) as temporary:
                    pq.write_table(pa.concat_tables([others, fresh.filter(pc.is_valid(fresh["size"]))]), temporary)

    with (
        tqdm(total=len(locators), desc="verifying images", unit=" images", disable=not progress) as bar,
        ThreadPoolExecutor(workers) as threads,
    ):
        try:
            for batch, new in _in_order(threads, partial(_look, store, decoding), blocks, ahead=4 * workers):
                batches.append(batch)
                decoded += new
                bar.update(batch.num_rows)
                if (now := time.monotonic()) > due:
                    save()  # all that are known: of tens of millions that takes minutes
                    done = time.monotonic()
                    due = done + max(_SAVE_SECONDS, 20 * (done - now))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            save()
    return pa.Table.from_batches(batches, VERDICT).combine_chunks(), decoded


def _remembered(file: Path) -> pa.Table:
    there = pq.read_table(file) if file.is_file() else None
    return VERDICT.empty_table() if there is None or there.column_names != VERDICT.names else there.cast(VERDICT)


def _look(store: ImageStore, decoding: bool, before: pa.Table) -> tuple[pa.RecordBatch, int]:
    """The verdicts on a block of pictures, given those of earlier runs, and the number of pictures decoded."""
    decoder = f"Pillow {PIL.__version__}, {Image.MAX_IMAGE_PIXELS} pixels"
    stamps: dict[str, tuple[int, int]] = {}  # one look per archive, not one per picture in it
    verdicts: list[dict[str, Any]] = []
    decoded = 0
    for old in before.to_pylist():
        new = dict.fromkeys(VERDICT.names) | {"locator": old["locator"]}
        verdicts.append(new)
        try:
            path = store.place(old["locator"]).path
            stamp = stamps[path] = stamps[path] if path in stamps else store.stamp(old["locator"])
            if not decoding:
                continue
            same = old["error"] is None or old["decoder"] == decoder
            if same and stamp == (old["size"], old["mtime_ns"]):
                new.update(old)
                continue
            data = store.read(old["locator"])
        except ImageError as error:  # without a stamp: not remembered, it may be reached the next time
            new["error"] = error.reason
            continue
        new["size"], new["mtime_ns"], new["decoder"] = *stamp, decoder
        new["digest"] = hashlib.blake2b(data, digest_size=16).hexdigest()
        decoded += 1
        try:
            decode(data, old["locator"], draft=True)
        except ImageError as error:
            new["error"] = error.reason
    return pa.RecordBatch.from_pylist(verdicts, schema=VERDICT), decoded


def _in_order(
    threads: ThreadPoolExecutor, work: Callable[[_T], _U], items: Iterable[_T], *, ahead: int
) -> Iterator[_U]:
    """``map`` that takes only so many items ahead of what is asked for, where ``Executor.map`` takes all at once."""
    running: deque[Future[_U]] = deque()
    for item in items:
        running.append(threads.submit(work, item))
        if len(running) == ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
