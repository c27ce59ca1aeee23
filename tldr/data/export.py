"""Selections in the formats that other programs read, and the pictures that distillation makes.

    annotations  annotations.json, BLIP's: [{"image": ..., "caption": ..., "uid": ...}]; ``data=json`` reads it back
    uids         uids.npy, DataComp's: the sorted 128-bit uids as pairs of uint64 (needs uids of 32 hex digits)
    webdataset   shards/00000.tar, ...: the pictures' own bytes, the captions and uids, img2dataset's layout;
                 ``data=webdataset`` reads it back

Shapes: n pairs.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from PIL import Image
from tqdm import tqdm

from tldr.atomic import atomic_path
from tldr.data.images import ImageStore
from tldr.pairs import Pairs

FORMATS = ("annotations", "uids", "webdataset")
SHARD_PAIRS = 10_000


def check_formats(formats: Sequence[str], pairs: Pairs | None = None) -> None:
    """Raises ValueError unless all of ``formats`` can be written, of ``pairs`` if they are known."""
    if isinstance(formats, str) or any(name not in FORMATS for name in formats):
        raise ValueError(f"exports={formats}; it is a list of {', '.join(FORMATS)}: exports=[annotations,uids]")
    if pairs is not None and "uids" in formats:
        others = pairs.uids.filter(pc.invert(pc.match_substring_regex(pairs.uids, "^[0-9a-fA-F]{32}$")))
        if len(others):
            raise ValueError(
                f"exports=uids needs uids of 32 hex digits, as DataComp's; {others[0]} is none: export annotations"
            )


def export(pairs: Pairs, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write ``pairs`` into ``folder`` in each of ``formats``; the files written."""
    check_formats(formats, pairs)
    writers = {"annotations": _annotations, "uids": _uids, "webdataset": _webdataset}
    return [writers[name](pairs, folder) for name in formats]


def clear(folder: Path) -> None:
    """Remove what an earlier selection exported into ``folder``, in whatever format: nobody could tell it from this
    one's."""
    for file in (folder / "annotations.json", folder / "uids.npy", *(folder / "shards").glob("*.tar")):
        file.unlink(missing_ok=True)


def _annotations(pairs: Pairs, folder: Path) -> Path:
    with atomic_path(folder / "annotations.json") as temporary, temporary.open("w", encoding="utf-8") as sink:
        sink.write("[")
        comma = ""
        for batch in pairs.batches(SHARD_PAIRS):  # as objects, 40M pairs would take 50 GB
            for record in batch.table.select(["image", "caption", "uid"]).to_pylist():
                sink.write(f"{comma}\n  {json.dumps(record, ensure_ascii=False)}")
                comma = ","
        sink.write("\n]\n")
    return folder / "annotations.json"


def _uids(pairs: Pairs, folder: Path) -> Path:
    halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in pairs.uids.to_pylist()]
    with atomic_path(folder / "uids.npy") as temporary, temporary.open("wb") as sink:
        np.save(sink, np.array(sorted(halves), dtype=np.dtype("u8,u8")))
    return folder / "uids.npy"


def _webdataset(pairs: Pairs, folder: Path) -> Path:
    store, shards = ImageStore(pairs.root), folder / "shards"
    for old in sorted(shards.glob("*.tar"))[-(-len(pairs) // SHARD_PAIRS) :]:
        old.unlink()  # of more pairs than these
    with tqdm(total=len(pairs), desc="writing shards", unit="pair") as bar:
        for number, shard in enumerate(pairs.batches(SHARD_PAIRS)):
            with atomic_path(shards / f"{number:05d}.tar") as temporary, tarfile.open(temporary, "w") as tar:
                for i, row in enumerate(shard.table.select(["uid", "image", "caption"]).to_pylist()):
                    data, key = store.read(row["image"]), f"{number:05d}{i:05d}"
                    facts = json.dumps({"uid": row["uid"], "caption": row["caption"], "key": key})
                    for suffix, content in (
                        (_suffix(data), data), ("txt", row["caption"].encode()), ("json", facts.encode()),
                    ):  # fmt: skip
                        info = tarfile.TarInfo(f"{key}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
                    bar.update()
    return shards


def _suffix(data: bytes) -> str:
    signatures = {b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif"}
    return signatures.get(data[:4], "jpg")


def write_pictures(images: np.ndarray, folder: Path) -> tuple[list[str], list[str]]:
    """Made pictures (n, 3, H, W), of which 1 is white, as PNG files into ``folder``: their names there, and the digests
    of the files' bytes, as `tldr.data.verdict` measures them."""
    (folder / "distilled").mkdir(parents=True, exist_ok=True)
    names, digests = [], []
    for number, pixels in enumerate(np.rint(images.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        names.append(f"distilled/{number:06d}.png")
        digests.append(hashlib.blake2b(buffer.getvalue(), digest_size=16).hexdigest())
        with atomic_path(folder / names[-1]) as temporary:
            temporary.write_bytes(buffer.getvalue())
    return names, digests
