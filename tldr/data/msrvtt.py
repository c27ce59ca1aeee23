"""MSR-VTT (Xu et al., 2016): clips with twenty captions each, in JSON (``videos`` and ``sentences``), or with one each,
in the CSV of the usual test set of 1,000 clips, "1k-A" (``video_id`` and ``sentence``; Yu et al., 2018).

A clip stands for ``frames`` pictures; the pairs name the first, ``video7010.mp4#frame=0/8`` (`tldr.pairs` has the
notation), and the column ``video`` the clip. With ``suffix=""`` a clip is a folder of frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tldr.data.base import Bad, Reader, Row, existing_file, existing_folder, pairs, records


class Msrvtt(Reader):
    """The pairs of one such file. ``videos`` is the folder of the clips, by default the file's own.

    ``split`` is one of those in the JSON (train, validate, test) or all.
    """

    def __init__(
        self,
        annotations: str | Path,
        *,
        videos: str | Path | None = None,
        split: str = "all",
        frames: int = 8,
        suffix: str = ".mp4",
        name: str = "msrvtt",
    ) -> None:
        if frames < 1:
            raise ValueError(f"data.frames={frames}; a clip has at least one")
        self.annotations = existing_file(annotations, "data.annotations")
        self.root = existing_folder(self.annotations.parent if videos is None else videos, "data.videos")
        self.split, self.frames, self.suffix = split, frames, suffix
        self.name = name

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs of the split, in the order of the file, then clips that have no caption."""
        yield from self._table() if self.annotations.suffix == ".csv" else self._json()

    def _pairs(self, clip: Any, caption: Any, uid: Any, where: str) -> Iterator[Row | Bad]:
        image = f"{clip}{self.suffix}#frame=0/{self.frames}" if isinstance(clip, str) and clip else None
        return pairs(image, caption, uid, {"video": clip}, where)

    def _json(self) -> Iterator[Row | Bad]:
        try:
            content = json.loads(self.annotations.read_text("utf-8-sig", "surrogateescape"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.annotations} is not JSON: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("sentences"), list) or "videos" not in content:
            raise ValueError(f"{self.annotations} is not MSR-VTT's: it has no videos and sentences")
        if not isinstance(content["videos"], list) or not all(isinstance(one, dict) for one in content["videos"]):
            raise ValueError(f"{self.annotations}: its videos are no list of objects, as MSR-VTT's are")
        splits = {video.get("video_id"): video.get("split") for video in content["videos"]}
        if self.split != "all" and self.split not in splits.values():
            known = ", ".join(sorted(map(str, set(splits.values()))))
            raise ValueError(f"data.split={self.split} is not in {self.annotations}; choose from all, {known}")
        silent = {clip: None for clip, split in splits.items() if self.split in ("all", split)}
        for number, sentence in enumerate(content["sentences"]):
            sentence = sentence if isinstance(sentence, dict) else {}
            clip = sentence.get("video_id")
            if clip in splits and self.split not in ("all", splits[clip]):
                continue
            silent.pop(clip, None)
            where = f"{self.annotations.name} sentence {number}"
            found = clip if clip in splits else None
            yield from self._pairs(found, sentence.get("caption"), sentence.get("sen_id"), where)
        for clip in silent:
            yield from self._pairs(clip, None, None, f"{self.annotations.name} has none for this clip")

    def _table(self) -> Iterator[Row | Bad]:
        if self.split != "all":
            raise ValueError(f"data.split={self.split}: {self.annotations} is a single split; use data.split=all")
        lines = records(self.annotations, ",")
        _, names = next(lines, (0, []))
        if not {"video_id", "sentence"} <= set(names):
            raise ValueError(f"{self.annotations} lacks the columns video_id and sentence; it has {', '.join(names)}")
        clip, sentence = names.index("video_id"), names.index("sentence")
        key = names.index("key") if "key" in names else None
        for line, cells in lines:
            where = f"{self.annotations.name} line {line}"
            if len(cells) != len(names):
                yield Bad("", b"", "read", f"not {len(names)} columns: {len(cells)} in {where}")
                continue
            yield from self._pairs(cells[clip], cells[sentence], None if key is None else cells[key], where)
