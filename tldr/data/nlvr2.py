"""NLVR2 (Suhr et al., 2019; https://lil.nlp.cornell.edu/nlvr): sentences that are true or false of two photographs, in
JSON lines ``{"identifier": "dev-850-0-0", "sentence": ..., "label": "True", ...}``.

The pictures are named by the identifier without its last part: ``dev-850-0-img0.png`` left, ``-img1.png`` right;
those of the training set lie in a folder for each ``directory`` that its records name. The uid is the record's
identifier. The column ``identifier`` is the same without the number of the pair of pictures, ``dev-850-0``: it names
the sentence. For the corpus's own script, a model is consistent on a sentence if it is right about all of its pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tldr.check import check_flag
from tldr.data.base import Bad, Reader, Row, existing_file, existing_folder, json_lines, raw
from tldr.data.truth import truth


class Nlvr2(Reader):
    """The pairs of one file: ``image`` is the left picture, ``image_2`` the right one, ``label`` whether the sentence
    is true of them (none in a file without labels).

    ``images`` is the folder (or URL) of the pictures, by default the file's own; ``directories`` false: they all lie in
    it, the training set's too.
    """

    def __init__(
        self,
        annotations: str | Path,
        *,
        images: str | Path | None = None,
        directories: bool = True,
        name: str = "nlvr2",
    ) -> None:
        self.annotations = existing_file(annotations, "data.annotations")
        self.root = existing_folder(self.annotations.parent if images is None else images, "data.images")
        check_flag("data", directories=directories)
        self.directories = directories
        self.name = name

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs in the order of the file."""
        for line, record in json_lines(self.annotations):
            where = f"{self.annotations.name} line {line}"
            record = record if isinstance(record, dict) else {}
            sentence, identifier = record.get("sentence"), record.get("identifier")
            said = raw(sentence) if isinstance(sentence, str) else b""
            parts = identifier.split("-") if isinstance(identifier, str) else []
            if len(parts) != 4:
                yield Bad("", said, "read", f"no identifier as dev-850-0-0: {where}")
                continue
            directory = record.get("directory") if self.directories else None
            stem = f"{'' if directory is None else f'{directory}/'}{'-'.join(parts[:-1])}"
            label = truth(record.get("label"))
            if not isinstance(sentence, str):
                yield Bad(f"{stem}-img0.png", b"", "caption", f"no caption: {where}", identifier)
            elif label is None and "label" in record:
                yield Bad(f"{stem}-img0.png", said, "read", f"label is neither True nor False: {where}", identifier)
            else:
                extra = {
                    "image_2": f"{stem}-img1.png",
                    "label": label,
                    "identifier": "-".join([*parts[:2], parts[3]]),
                    "synset": record.get("synset"),
                }
                yield Row(f"{stem}-img0.png", sentence, identifier, extra, where)
