"""The embedded dataset: rendered scenes of coloured shapes (`tldr.data.scenes`) with captions, statements and
questions, and the noise of web data planted in known places (`tldr.data.planted` says which and where).
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import eq
from pathlib import Path

from tldr.data.base import Bad, Reader, Row
from tldr.data.planted import Plan, World, is_made, make, read
from tldr.data.scenes import caption, draw_scene, rarity, render, view

VERSION = 2  # of the recipe: another version renders into another folder


class Shapes(Reader):
    """``size`` training pairs, or (``split=eval``) ``eval_images`` clean pictures with five captions each.

    For each of ``eval_images`` pictures, ``split=nlvr2`` has two statements and ``split=vqa`` four questions;
    ``nlvr2_train`` and ``vqa_train`` have ``size`` of them. Rendered once into ``root`` as a tar of PNGs and a table,
    in a folder named by these arguments, on which alone the data depend."""

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
        copies: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.parent = root
        self.plan = Plan(self.name, split, size, eval_images, image_size, mismatched, duplicates, seed, copies)
        self.root = self.plan.folder(root, VERSION)

    def for_task(self, task: str) -> Reader:
        """The evaluation split of pairs, nlvr2 or vqa."""
        plan = self.plan
        return Shapes(
            self.parent,
            split=plan.split_for(task),
            size=plan.size,
            eval_images=plan.eval_images,
            image_size=plan.image_size,
            mismatched=plan.mismatched,
            duplicates=plan.duplicates,
            copies=plan.copies,
            seed=plan.seed,
        )

    def prepare(self) -> None:
        """Render, where that has not been done."""
        if is_made(self.root):
            return
        world = World(
            draw=draw_scene,
            draw_task=draw_scene,
            render=lambda scene, rng, size: render(scene, rng, size=size),
            caption=caption,
            rarity=rarity,
            true_of=eq,
            view=view,
        )
        make(self.plan, world, self.root)

    def rows(self) -> Iterator[Row | Bad]:
        """The pairs; renders them first where that has not been done."""
        self.prepare()
        yield from read(self.root)
