"""COCO's captions (https://cocodataset.org/#format-data: ``images`` and ``annotations``) and Karpathy's splits of COCO,
Flickr8k and Flickr30k (https://cs.stanford.edu/people/karpathy/deepimagesent: ``images``, each with its ``sentences``).

The uid is the source's id of the caption (annotation id, sentid), the same for COCO in both. The columns ``image_id``
and, of Karpathy's files, ``split`` are kept. ``split=train`` takes ``restval`` with it, as everybody who trains on COCO
does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tldr.data.base import Bad, Reader, Row, existing_file, existing_folder, pairs, raw

HELD_OUT = {"val", "test"}


class Coco(Reader):
    """The pairs of one such file. ``images`` is the folder (or URL) of the pictures, by default the file's own.

    COCO's names are those inside ``val2017/``, so ``images`` is that folder; Karpathy's begin with ``val2014/``.
    """

    def __init__(
        self, annotations: str | Path, *, images: str | Path | None = None, split: str = "all", name: str = "coco"
    ) -> None:
        self.annotations = existing_file(annotations, "data.annotations")
        self.root = existing_folder(self.annotations.parent if images is None else images, "data.images")
        self.split = split
        self.name = name

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs of the split, then pictures that have no caption."""
        try:
            content = json.loads(self.annotations.read_text("utf-8-sig", "surrogateescape"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.annotations} is not JSON: {error}") from error
        images = content.get("images") if isinstance(content, dict) else None
        if (
            not isinstance(images, list)
            or not all(isinstance(image, dict) for image in images)
            or not isinstance(content.get("annotations", []), list)
            or not ("annotations" in content or all(isinstance(one.get("sentences"), list) for one in images))
        ):
            raise ValueError(f"{self.annotations} is neither COCO's (images, annotations) nor Karpathy's (sentences)")
        if "annotations" not in content:
            yield from self._karpathy(images)
        elif self.split != "all":
            raise ValueError(
                f"data.split={self.split}: {self.annotations} is one of COCO's files, which are a split each"
            )
        else:
            yield from self._coco(images, content["annotations"])

    def _coco(self, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Iterator[Row | Bad]:
        names: dict[Any, Any] = {}
        twice: dict[Any, Any] = {}  # ids of two pictures, as where files were put together
        for image in images:
            own, name = image.get("id"), image.get("file_name")
            if names.setdefault(own, name) != name:
                twice[own] = name
        silent = dict(names)
        for number, annotation in enumerate(annotations):
            where = f"{self.annotations.name} annotation {number}"
            annotation = annotation if isinstance(annotation, dict) else {}
            image_id, caption = annotation.get("image_id"), annotation.get("caption")
            silent.pop(image_id, None)
            if image_id in twice:
                said = raw(caption) if isinstance(caption, str) else b""
                both = f"{image_id} is that of {names[image_id]} and of {twice[image_id]}"
                yield Bad("", said, "read", f"image id of two pictures: {both}, {where}", _name(annotation.get("id")))
                continue
            image, extra = names.get(image_id), {"image_id": image_id}
            yield from pairs(image, caption, annotation.get("id"), extra, where)
        for image in silent.values():
            yield Bad(str(image), b"", "caption", f"no caption: {self.annotations.name} has none for this image")

    def _karpathy(self, images: list[dict[str, Any]]) -> Iterator[Row | Bad]:
        splits = {image.get("split") for image in images}
        wanted = {"all": splits, "train": {"train", "restval"}}.get(self.split, {self.split})
        if not wanted & splits:
            raise ValueError(
                f"data.split={self.split} is not in {self.annotations}; choose from all, "
                f"{', '.join(sorted(map(str, splits)))}"
            )
        if self.split == "all" and splits & HELD_OUT:
            counts = Counter(str(image.get("split")) for image in images)
            held = ", ".join(f"{count} pictures of {split}" for split, count in sorted(counts.items()))
            print(f"{self.annotations.name}: {held}; data.split=train leaves val and test to be tested on")
        for number, image in enumerate(images):
            if image.get("split") not in wanted:
                continue
            where = f"{self.annotations.name} image {number}"
            folder, file = image.get("filepath"), image.get("filename")
            name = f"{folder}/{file}" if folder and file else file
            extra = {"image_id": image.get("cocoid", image.get("imgid")), "split": image.get("split")}
            for sentence in image["sentences"]:
                sentence = sentence if isinstance(sentence, dict) else {"raw": sentence}
                yield from pairs(name, sentence.get("raw"), sentence.get("sentid"), extra, where)
            if not image["sentences"]:
                yield from pairs(name, None, None, extra, where)


def _name(uid: Any) -> str | None:
    return None if uid is None else str(uid)
