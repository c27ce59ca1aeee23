"""Scenes of real pixels: mosaics and close-ups of CIFAR-10's pictures (`tldr.data.mosaics`) with captions, statements
and questions, and the noise of web data planted in known places (`tldr.data.planted` says which and where).

Training splits show CIFAR's training pictures, evaluation splits its test pictures. Full mosaics cannot be learned by a
small model within minutes; two or three tiles on a plain canvas can. From the close-ups it learns the classes by name,
so that zero-shot classification of CIFAR-10 is a test of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tldr.data.base import Bad, Reader, Row, absolute
from tldr.data.cifar import CifarPictures, cifar_folder, download_cifar, labelled
from tldr.data.mosaics import caption, draw_mosaic, rarity, render, says_nothing_else, view
from tldr.data.planted import SPLITS, Plan, World, is_made, make, read

VERSION = 1  # of the recipe: another version renders into another folder
CLASSES = "classes"  # the split and the task


class CifarScenes(Reader):
    """``size`` training pairs, or (``split=eval``) ``eval_images`` clean pictures with five captions each.

    For each of ``eval_images`` pictures, ``split=nlvr2`` has two statements and ``split=vqa`` four questions;
    ``nlvr2_train`` and ``vqa_train`` have ``size`` of them; none are about close-ups. ``close_ups`` is the share of
    close-ups among the scenes. ``source`` is the folder of CIFAR-10, by default found or downloaded
    (`tldr.data.cifar`). Rendered once into ``root``. ``split=classes`` is CIFAR-10's test set as it is, with the name
    of the class as caption."""

    name = "cifar_scenes"

    def __init__(
        self,
        root: str | Path,
        *,
        source: str | Path | None = None,
        split: str = "train",
        size: int = 16_000,
        eval_images: int = 1_000,
        image_size: int = 64,
        close_ups: float = 0.15,
        mismatched: float = 0.4,
        duplicates: float = 0.4,
        copies: float = 0.0,
        seed: int = 0,
    ) -> None:
        if split not in (*SPLITS, CLASSES):
            raise ValueError(f"data.split={split!r}; {self.name} has {', '.join((*SPLITS, CLASSES))}")
        if not 0 <= close_ups <= 1:
            raise ValueError(f"data.close_ups={close_ups}; it is a share of the scenes, in [0, 1]")
        self.parent, self.source, self.split, self.close_ups = root, source, split, close_ups
        planned = "eval" if split == CLASSES else split
        self.plan = Plan(self.name, planned, size, eval_images, image_size, mismatched, duplicates, seed, copies)
        self.downloads = Path(root) / "cifar10"
        folder = cifar_folder(source, self.downloads)
        self.pictures = folder / ("train.parquet" if split == "train" or split.endswith("_train") else "test.parquet")
        # Copies of CIFAR-10 differ: as PNG they are its very pixels, as JPEG nearly.
        copy = self.pictures.stat().st_size if folder != Path(absolute(self.downloads)) else "downloaded"
        if split == CLASSES:
            self.root = str(folder)
        else:
            self.root = self.plan.folder(root, VERSION, copy, *([close_ups] if SPLITS[split] == "pairs" else []))

    def for_task(self, task: str) -> Reader:
        """The evaluation split of pairs, nlvr2, vqa or classes."""
        plan = self.plan
        return CifarScenes(
            self.parent,
            source=self.source,
            split=CLASSES if task == CLASSES else plan.split_for(task),
            size=plan.size,
            eval_images=plan.eval_images,
            image_size=plan.image_size,
            close_ups=self.close_ups,
            mismatched=plan.mismatched,
            duplicates=plan.duplicates,
            copies=plan.copies,
            seed=plan.seed,
        )

    def prepare(self) -> None:
        """Render, where that has not been done; first download CIFAR-10 where there is none."""
        if self.split != CLASSES and is_made(self.root):
            return
        download_cifar(self.pictures.parent)
        if self.split == CLASSES:
            return
        pictures = CifarPictures(self.pictures)
        world = World(
            draw=lambda rng: draw_mosaic(rng, pictures.count, close_ups=self.close_ups),
            draw_task=lambda rng: draw_mosaic(rng, pictures.count, close_ups=0),
            render=lambda scene, rng, size: render(scene, pictures.pixels, rng, size=size),
            caption=caption,
            rarity=rarity,
            true_of=says_nothing_else,
            view=view,
        )
        make(self.plan, world, self.root)

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs; renders them first where that has not been done."""
        self.prepare()
        yield from labelled(self.pictures) if self.split == CLASSES else read(self.root)
