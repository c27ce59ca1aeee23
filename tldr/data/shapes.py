"""The embedded dataset: rendered scenes with captions, and the diseases of web data planted in known places.

Of the training pairs, a share is *mismatched* (the caption is another scene's) and a share is *redundant* (the scene
was rendered before: new jitter, brightness, noise and wording, the picture no two times the same file). A few scenes
are repeated often, most never, as on the web. The ground truth stands in columns that selectors do not see:

    truth_mismatched  bool   the caption is of another scene
    truth_scene       int    which scene the picture shows; rows that share it are duplicates of each other
    truth_duplicate   bool   the row is one of the redundant renderings
    truth_rarity      float  minus log-probability of the scene's rarest object: its place in the long tail

The evaluation split is clean: other scenes, each with captions of every style, so that it favours no length of caption.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tldr.atomic import atomic_path
from tldr.data.base import Bad, Reader, Row
from tldr.data.scenes import STYLE_SHARES, STYLES, Scene, caption, draw_scene, rarity, render, zipf

VERSION = 2  # of the recipe: another version renders into another folder
EVAL_CAPTIONS = ("full", "full", "relation", "terse", "count")


class Shapes(Reader):
    """``size`` training pairs, or (``split=eval``) ``eval_images`` clean pictures with five captions each.

    Rendered once into ``root`` as a tar of PNGs and a table, in a folder named by these arguments; a function of them
    alone."""

    name = "shapes"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "train",
        size: int = 16_000,
        eval_images: int = 1_000,
        image_size: int = 64,
        mismatched: float = 0.4,
        duplicates: float = 0.4,
        seed: int = 0,
    ) -> None:
        if split not in ("train", "eval"):
            raise ValueError(f"data.split={split!r}; shapes has train and eval")
        for name, share in (("mismatched", mismatched), ("duplicates", duplicates)):
            if not 0 <= share < 1:
                raise ValueError(f"data.{name}={share}; it is a share of the pairs, in [0, 1)")
        if size - round(size * duplicates) < 2:
            raise ValueError(
                f"data.size={size} with data.duplicates={duplicates} leaves fewer than two distinct scenes"
            )
        self.split, self.size, self.eval_images, self.image_size = split, size, eval_images, image_size
        self.mismatched, self.duplicates, self.seed = mismatched, duplicates, seed
        recipe = [VERSION, split, image_size, seed]
        recipe += [size, mismatched, duplicates] if split == "train" else [eval_images]
        key = hashlib.blake2b(json.dumps(recipe).encode(), digest_size=6).hexdigest()
        self.root = str(Path(root).resolve() / f"{split}-{key}")

    @property
    def _table(self) -> Path:
        return Path(self.root) / "pairs.parquet"

    def prepare(self) -> None:
        """Render, where that has not been done."""
        if not self._table.is_file():  # written last: its presence says that the tar is whole
            self._render()

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs; renders them first where that has not been done."""
        self.prepare()
        for record in pq.read_table(self._table).to_pylist():
            image, text = record.pop("image"), record.pop("caption")
            yield Row(image=image, caption=text, extra=record)

    def _render(self) -> None:
        rng = np.random.default_rng([self.seed, self.split == "eval"])
        scenes, ids, redundant = self._scenes(rng)
        tar_file = Path(self.root) / "images.tar"
        locators = []
        with atomic_path(tar_file) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i, scene in enumerate(tqdm(scenes, desc=f"rendering shapes ({self.split})", unit="picture")):
                buffer = io.BytesIO()
                render(scene, rng, size=self.image_size).save(buffer, "PNG", compress_level=1)
                info = tarfile.TarInfo(f"{i:06d}.png")
                info.size = buffer.tell()
                locators.append(f"{tar_file.name}#bytes={tar.offset + tarfile.BLOCKSIZE}+{info.size}")
                buffer.seek(0)
                tar.addfile(info, buffer)
        columns = self._captions(scenes, ids, redundant, locators, rng)
        with atomic_path(self._table) as temporary:
            pq.write_table(pa.table(columns), temporary)

    def _scenes(self, rng: np.random.Generator) -> tuple[list[Scene], np.ndarray, np.ndarray]:
        """The scene of every picture, its number, and whether it repeats an earlier one."""
        if self.split == "eval":
            count = self.eval_images
            return [draw_scene(rng) for _ in range(count)], np.arange(count), np.zeros(count, bool)
        again = round(self.size * self.duplicates)
        distinct = [draw_scene(rng) for _ in range(self.size - again)]
        popular = max(1, len(distinct) // 4)  # what gets repeated at all
        repeats = rng.choice(popular, size=again, p=zipf(popular, 0.7))
        ids = np.concatenate([np.arange(len(distinct)), repeats])
        redundant = np.arange(self.size) >= len(distinct)
        order = rng.permutation(self.size)
        return [distinct[i] for i in ids[order]], ids[order], redundant[order]

    def _captions(
        self, scenes: list[Scene], ids: np.ndarray, redundant: np.ndarray, locators: list[str], rng: np.random.Generator
    ) -> dict[str, list]:
        if self.split == "eval":
            rows = []
            for i, scene in enumerate(scenes):
                texts: list[str] = []
                while len(texts) < len(EVAL_CAPTIONS):
                    text = caption(scene, EVAL_CAPTIONS[len(texts)], rng)
                    if text not in texts:
                        texts.append(text)
                rows += [(i, text, False) for text in texts]
        else:
            wrong = np.zeros(self.size, bool)
            wrong[rng.choice(self.size, round(self.size * self.mismatched), replace=False)] = True
            rows = []
            for i, scene in enumerate(scenes):
                style = str(rng.choice(STYLES, p=STYLE_SHARES))
                told = scene
                while wrong[i] and told == scene:
                    told = scenes[int(rng.integers(self.size))]
                rows.append((i, caption(told, style, rng), bool(wrong[i])))
        return {
            "image": [locators[i] for i, _, _ in rows],
            "caption": [text for _, text, _ in rows],
            "truth_mismatched": [bad for _, _, bad in rows],
            "truth_scene": [int(ids[i]) for i, _, _ in rows],
            "truth_duplicate": [bool(redundant[i]) for i, _, _ in rows],
            "truth_rarity": [rarity(scenes[i]) for i, _, _ in rows],
        }
