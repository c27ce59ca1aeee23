"""Data sets of rendered scenes: which scene each picture shows, what its caption says, and the noise of web data
planted in known places.

Of the training pairs, a share is *mismatched* (the caption is another scene's) and a share is *redundant* (the scene
was rendered before, now with new jitter, brightness, noise and wording: no two files are the same). A few scenes are
repeated often, most never, as on the web. Of the redundant pairs a share can be *copies*, which repeat the first
rendering's caption word for word, right or wrong. The ground truth is in columns that selectors do not see:

    truth_mismatched  bool   the caption is of another scene
    truth_scene       int    which scene the picture shows; rows that share it are duplicates of each other
    truth_duplicate   bool   the row is one of the redundant renderings
    truth_rarity      float  minus log-probability of the scene's rarest object: its place in the long tail

All other splits are clean. ``eval`` has other scenes, each with captions of every style, so that it favours no length
of caption; ``nlvr2`` and ``vqa``, and their training splits, have statements about two pictures, questions about one.

A data set is one folder: a tar of PNGs and a table, a function of its `Plan` and its `World`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from tldr.atomic import atomic_path
from tldr.check import check_number
from tldr.data.base import Row
from tldr.data.questions import asked
from tldr.data.scenes import STYLE_SHARES, STYLES, zipf
from tldr.data.statements import judged
from tldr.data.view import View

SPLITS = {  # and the task of each
    "train": "pairs", "eval": "pairs", "nlvr2_train": "nlvr2", "nlvr2": "nlvr2", "vqa_train": "vqa", "vqa": "vqa",
}  # fmt: skip
EVALUATION = {"pairs": "eval", "nlvr2": "nlvr2", "vqa": "vqa"}
EVAL_CAPTIONS = ("full", "full", "relation", "terse", "count")
ROWS_A_PICTURE = {"nlvr2": 2, "vqa": 4}
TASKS_VERSION = 1  # of the statements and questions

S = TypeVar("S")  # a scene


@dataclass(frozen=True)
class World(Generic[S]):
    """How scenes are drawn, rendered and described. ``true_of(told, shown)``: captions of the one may fit the other.

    ``draw_task`` draws the scenes that statements and questions are about."""

    draw: Callable[[np.random.Generator], S]
    draw_task: Callable[[np.random.Generator], S]
    render: Callable[[S, np.random.Generator, int], Image.Image]
    caption: Callable[[S, str, np.random.Generator], str]
    rarity: Callable[[S], float]
    true_of: Callable[[S, S], bool]
    view: Callable[[S], View]


@dataclass(frozen=True)
class Plan:
    """What to make. ``size`` is the number of rows of a training split, ``eval_images`` that of pictures of the others.

    ``mismatched`` is a share of the pairs that are not copies, ``copies`` a share of the redundant pairs."""

    name: str
    split: str
    size: int
    eval_images: int
    image_size: int
    mismatched: float
    duplicates: float
    seed: int
    copies: float = 0.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"data.split={self.split!r}; {self.name} has {', '.join(SPLITS)}")
        for name, share in (("mismatched", self.mismatched), ("duplicates", self.duplicates)):
            below_one = math.nextafter(1, 0)
            check_number(f"data.{name}", share, "a share of the pairs, in [0, 1)", low=0, high=below_one)
        check_number("data.copies", self.copies, "a share of the redundant pairs, in [0, 1]", low=0, high=1)
        if self.size - round(self.size * self.duplicates) < 2:
            raise ValueError(
                f"data.size={self.size} with data.duplicates={self.duplicates} leaves fewer than two distinct scenes"
            )

    def folder(self, root: str | Path, version: int, *more: Any) -> str:
        """The data set's folder under ``root``, named by what it depends on, ``more`` included."""
        recipe: list[Any] = [version, self.split, self.image_size, self.seed]
        if self.split == "train":
            recipe += [self.size, self.mismatched, self.duplicates, *([self.copies] if self.copies else [])]
        else:
            recipe += [self.size if self.split.endswith("_train") else self.eval_images]
        recipe += [*([TASKS_VERSION] if SPLITS[self.split] != "pairs" else []), *more]
        key = hashlib.blake2b(json.dumps(recipe).encode(), digest_size=6).hexdigest()
        return str(Path(root).resolve() / f"{self.split}-{key}")

    def split_for(self, task: str) -> str:
        """The split that ``task`` is evaluated on: this one where it is of that task, or where none is."""
        return self.split if SPLITS[self.split] == task else EVALUATION.get(task, self.split)


def is_made(root: str) -> bool:
    """Whether the folder is whole."""
    return (Path(root) / "pairs.parquet").is_file()  # written last


def read(root: str) -> Iterator[Row]:
    """The rows of a folder that is made."""
    for record in pq.read_table(Path(root) / "pairs.parquet").to_pylist():
        image, text, uid = record.pop("image"), record.pop("caption"), record.pop("uid", None)
        yield Row(image=image, caption=text, uid=uid, extra=record)


def make(plan: Plan, world: World[Any], root: str) -> None:
    """Render the pictures and write the table."""
    rng = np.random.default_rng([plan.seed, list(SPLITS).index(plan.split)])
    task = SPLITS[plan.split]
    if task == "pairs":
        scenes, ids, redundant = _scenes(plan, world, rng)
        locators = _write_pictures(plan, world, root, scenes, rng)
        columns = _captions(plan, world, scenes, ids, redundant, locators, rng)
    else:
        scenes, columns = _nlvr2(plan, world, rng) if task == "nlvr2" else _vqa(plan, world, rng)
        locators = _write_pictures(plan, world, root, scenes, rng)
        for name in {"image", "image_2"} & columns.keys():
            columns[name] = [locators[number] for number in columns[name]]
    with atomic_path(Path(root) / "pairs.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)


def _write_pictures(plan: Plan, world: World[S], root: str, scenes: list[S], rng: np.random.Generator) -> list[str]:
    """A tar of the scenes' pictures; the locator of each."""
    file = Path(root) / "images.tar"
    locators = []
    with atomic_path(file) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, scene in enumerate(tqdm(scenes, desc=f"rendering {plan.name} ({plan.split})", unit="picture")):
            buffer = io.BytesIO()
            world.render(scene, rng, plan.image_size).save(buffer, "PNG", compress_level=1)
            info = tarfile.TarInfo(f"{i:06d}.png")
            info.size = buffer.tell()
            locators.append(f"{file.name}#bytes={tar.offset + tarfile.BLOCKSIZE}+{info.size}")
            buffer.seek(0)
            tar.addfile(info, buffer)
    return locators


def _scenes(plan: Plan, world: World[S], rng: np.random.Generator) -> tuple[list[S], np.ndarray, np.ndarray]:
    """The scene of every picture, its number, and whether it repeats an earlier one."""
    if plan.split == "eval":
        count = plan.eval_images
        return [world.draw(rng) for _ in range(count)], np.arange(count), np.zeros(count, bool)
    again = round(plan.size * plan.duplicates)
    distinct = [world.draw(rng) for _ in range(plan.size - again)]
    popular = max(1, len(distinct) // 4)  # what gets repeated at all
    repeats = rng.choice(popular, size=again, p=zipf(popular, 0.7))
    ids = np.concatenate([np.arange(len(distinct)), repeats])
    redundant = np.arange(plan.size) >= len(distinct)
    order = rng.permutation(plan.size)
    return [distinct[i] for i in ids[order]], ids[order], redundant[order]


def _every_style(world: World[S], scenes: list[S], rng: np.random.Generator) -> list[tuple[int, str, bool]]:
    """The captions of the evaluation split: row of the scene, caption, not wrong."""
    rows = []
    for i, scene in enumerate(scenes):
        texts: list[str] = []
        while len(texts) < len(EVAL_CAPTIONS):
            text = world.caption(scene, EVAL_CAPTIONS[len(texts)], rng)
            if text not in texts:
                texts.append(text)
        rows += [(i, text, False) for text in texts]
    return rows


def _with_faults(
    plan: Plan, world: World[S], scenes: list[S], ids: np.ndarray, redundant: np.ndarray, rng: np.random.Generator
) -> list[tuple[int, str, bool]]:
    """The captions of the training split: row of the scene, caption, whether it is another scene's."""
    copied = np.zeros(plan.size, bool)
    if plan.copies:  # nothing is drawn for none: pools without copies stay what they were
        again = np.flatnonzero(redundant)
        copied[rng.choice(again, round(len(again) * plan.copies), replace=False)] = True
    own = np.flatnonzero(~copied)
    wrong = np.zeros(plan.size, bool)
    wrong[rng.choice(own, round(len(own) * plan.mismatched), replace=False)] = True
    texts: dict[int, str] = {}
    for i in own.tolist():
        style = str(rng.choice(STYLES, p=STYLE_SHARES))
        told = scenes[i]
        while wrong[i] and world.true_of(told, scenes[i]):
            told = scenes[int(rng.integers(plan.size))]
        texts[i] = world.caption(told, style, rng)
    first = {int(ids[i]): i for i in np.flatnonzero(~redundant).tolist()}
    sources = [first[int(ids[i])] if copied[i] else i for i in range(plan.size)]
    return [(i, texts[source], bool(wrong[source])) for i, source in enumerate(sources)]


def _captions(
    plan: Plan,
    world: World[S],
    scenes: list[S],
    ids: np.ndarray,
    redundant: np.ndarray,
    locators: list[str],
    rng: np.random.Generator,
) -> dict[str, list[Any]]:
    if plan.split == "eval":
        rows = _every_style(world, scenes, rng)
    else:
        rows = _with_faults(plan, world, scenes, ids, redundant, rng)
    return {
        "image": [locators[i] for i, _, _ in rows],
        "caption": [text for _, text, _ in rows],
        "truth_mismatched": [bad for _, _, bad in rows],
        "truth_scene": [int(ids[i]) for i, _, _ in rows],
        "truth_duplicate": [bool(redundant[i]) for i, _, _ in rows],
        "truth_rarity": [world.rarity(scenes[i]) for i, _, _ in rows],
    }


def _amount(plan: Plan) -> tuple[int, int]:
    """(pictures, rows) of a split of statements or questions."""
    a_picture = ROWS_A_PICTURE[SPLITS[plan.split]]
    if plan.split.endswith("_train"):
        return max(2, plan.size // a_picture), plan.size
    return plan.eval_images, plan.eval_images * a_picture


def _nlvr2(plan: Plan, world: World[S], rng: np.random.Generator) -> tuple[list[S], dict[str, list[Any]]]:
    pictures, count = _amount(plan)
    scenes = [world.draw_task(rng) for _ in range(max(8, pictures))]
    rows = judged([world.view(scene) for scene in scenes], count, rng)
    used = sorted({number for row in rows for number in (row.left, row.right)})
    place = {number: i for i, number in enumerate(used)}
    groups = [f"{plan.split}-{row.group:06d}" for row in rows]
    columns = {
        "uid": [f"{group}-{i % 4}" for i, group in enumerate(groups)],
        "image": [place[row.left] for row in rows],
        "image_2": [place[row.right] for row in rows],
        "caption": [row.text for row in rows],
        "label": [row.label for row in rows],
        "identifier": groups,
    }
    return [scenes[number] for number in used], columns


def _vqa(plan: Plan, world: World[S], rng: np.random.Generator) -> tuple[list[S], dict[str, list[Any]]]:
    pictures, count = _amount(plan)
    scenes: list[S] = []
    rows = []
    while len(rows) < count:  # few pictures are soon asked out: what balances them is rare
        scenes += [world.draw_task(rng) for _ in range(max(8, pictures))]
        rows = asked([world.view(scene) for scene in scenes], count, rng)
    used = sorted({row.picture for row in rows})
    place = {number: i for i, number in enumerate(used)}
    columns = {
        "uid": [f"{plan.split}-{i:06d}" for i in range(count)],
        "image": [place[row.picture] for row in rows],
        "caption": [row.text for row in rows],
        "answers": [[row.answer] for row in rows],
        "answer_type": [row.kind for row in rows],
        "question_type": [row.family for row in rows],
    }
    return [scenes[number] for number in used], columns
