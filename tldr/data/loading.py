"""From pairs to batches: decode, transform, collate.

Pictures travel as uint8, and the model normalises them on its device: a quarter of the memory and of the bus. A
picture that cannot be decoded stops the run with its uid; reading the pool with ``verify=decode`` has quarantined such
pictures before. The order of training and the draws of augmentation depend only on the seed and on the position in
the run: not on workers, processes, or how often it was interrupted (`tldr.data.order`).

Shapes: N pairs, B of a batch, H = W = image_size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NotRequired, Protocol, TypedDict

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from tldr.check import check_number
from tldr.data.images import INSIDE, ImageError, ImageStore
from tldr.data.order import Drawn, OrderedLoader, ShuffledBatches, refuse_too_few
from tldr.pairs import DIGEST, Pairs

AUGMENTATIONS = ("none", "crop", "randaugment", "finetune", "vilt")
SECOND = "image_2"  # the column that names a second picture of the pair


class Sample(TypedDict):
    """One pair: (3, H, W) uint8 picture, its caption, its row in the pairs, the number of its picture, why the picture
    could not be decoded ("": it could), the extra columns asked for, and its second picture if that was one of them."""

    image: Tensor
    caption: str
    row: int
    image_id: int
    error: str
    columns: dict[str, Any]
    image_2: NotRequired[Tensor]


class Batch(TypedDict):
    """B pairs: (B, 3, H, W) uint8, B captions, (B,) rows, (B,) numbers that are equal where the picture is the same,
    B errors, B values of every column asked for, and (B, 3, H, W) second pictures where those were asked for."""

    images: Tensor
    captions: list[str]
    rows: Tensor
    image_ids: Tensor
    errors: list[str]
    columns: dict[str, list[Any]]
    images_2: NotRequired[Tensor]


class RandAugment(v2.RandAugment):
    """BLIP's: of ten operations, none of which changes colour (a caption may name it), ``num_ops`` are drawn, and each
    is done with probability ``p``. ``magnitude`` is a level of 0 to 10, and translations are in pixels, whatever the
    picture's size; at level 5, BLIP's, brightness and sharpness stay as they are. Edges are filled with grey."""

    _AUGMENTATION_SPACE: ClassVar = {  # magnitudes of all levels, and whether a sign is drawn
        **{name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in ("Identity", "AutoContrast", "Equalize")},
        **dict.fromkeys(("Brightness", "Sharpness"), (lambda levels, *_: torch.linspace(-0.9, 0.9, levels), False)),
        **dict.fromkeys(("ShearX", "ShearY"), (lambda levels, *_: torch.linspace(0, 0.3, levels), True)),
        **dict.fromkeys(("TranslateX", "TranslateY"), (lambda levels, *_: torch.linspace(0, 10, levels), True)),
        "Rotate": (lambda levels, *_: torch.linspace(0, 30, levels), True),
    }

    def __init__(self, num_ops: int = 2, magnitude: int = 5, *, p: float = 0.5) -> None:
        bilinear = InterpolationMode.BILINEAR
        super().__init__(num_ops, magnitude, num_magnitude_bins=11, interpolation=bilinear, fill=128)
        self.p = p

    def _get_random_item(self, dct: Any) -> Any:
        name, found = super()._get_random_item(dct)
        return (name, found) if torch.rand(()) < self.p else ("Identity", dct["Identity"])


def transform(image_size: int, augment: str = "none", resize_mode: str = "squash") -> v2.Transform:
    """PIL RGB -> (3, H, W) uint8. ``none``: resize (evaluation) by ``resize_mode``, the whole picture or, for
    ``shortest``, its centre (`tldr.nn.vision.ImageEncoder`); ``crop``: random resized crop of 0.2-1 of the area and
    flip; ``randaugment``: that, then `RandAugment` (BLIP's pre-training); ``finetune``: likewise of 0.5-1 of the area
    (its fine-tuning); ``vilt``: as ``none``, then torchvision's RandAugment of two operations, colour among them
    but neither inversion nor cutout, at 9 of 30 (ViLT's fine-tuning)."""
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment={augment!r}; choose from {', '.join(AUGMENTATIONS)}")
    bicubic = InterpolationMode.BICUBIC
    steps: list[torch.nn.Module] = [v2.Resize((image_size, image_size), bicubic)]
    if resize_mode == "shortest":
        steps = [v2.Lambda(_without_ends), v2.Resize(image_size, bicubic), v2.CenterCrop(image_size)]
    if augment == "vilt":
        steps.append(v2.RandAugment(2, 9))
    elif augment != "none":
        area = (0.5 if augment == "finetune" else 0.2, 1.0)
        steps = [v2.RandomResizedCrop(image_size, area, interpolation=bicubic), v2.RandomHorizontalFlip()]
    if augment in ("randaugment", "finetune"):
        steps.append(RandAugment(2, 5))
    return v2.Compose([*steps, v2.PILToTensor()])


def _without_ends(picture: Image.Image) -> Image.Image:
    """Of a banner, the eight squares around its centre: more than the centre crop sees. To resize all of 6000 x 2
    pixels would take gigabytes."""
    short, long = sorted(picture.size)
    most = 8 * short + (long - 8 * short) % 2  # as odd as the length: the centre stays where it is
    width, height = (min(side, most) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height)) if long > most else picture


class Viewer(Protocol):
    """A model that sees pictures: squares with sides of ``image_size`` pixels, made from others by ``resize_mode``."""

    image_size: int
    resize_mode: str


class PairsDataset(Dataset[Sample]):
    """The pairs, decoded on demand, with the extra ``columns`` named; the column ``image_2`` holds a second picture's
    locator and is decoded like the first. ``cache=True`` keeps every transformed picture in memory (not with
    augmentation): small sets then cost no decoding after the first epoch. A picture that cannot be decoded raises
    ValueError with its uid or, if ``tolerant``, becomes a black one with the reason in ``error``: for callers that
    handle such pairs themselves."""

    def __init__(
        self,
        pairs: Pairs,
        *,
        image_size: int,
        resize_mode: str = "squash",
        augment: str = "none",
        cache: bool = False,
        tolerant: bool = False,
        columns: Sequence[str] = (),
    ) -> None:
        if cache and augment != "none":
            raise ValueError(f"cache=true keeps pictures as they are; it cannot go with augment={augment}")
        there = pairs.table.column_names
        missing = [name for name in columns if name not in there]
        if missing:
            raise ValueError(f"these pairs have no column {', '.join(missing)}; they have {', '.join(there)}")
        self.pairs = pairs
        self.image_size, self.resize_mode, self.tolerant = image_size, resize_mode, tolerant
        self.columns, self.second = tuple(name for name in columns if name != SECOND), SECOND in columns
        self.store = ImageStore(pairs.root)
        self.transform = transform(image_size, augment, resize_mode)
        self.image_ids = _numbers(_names(pairs))
        self.cache: dict[str, Tensor] | None = {} if cache else None

    @classmethod
    def seen_by(cls, model: Viewer, pairs: Pairs, **options: Any) -> PairsDataset:
        """The pairs with pictures as ``model`` takes them."""
        return cls(pairs, image_size=model.image_size, resize_mode=model.resize_mode, **options)

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, row: int) -> Tensor:
        """(3, H, W) uint8 of the pair's (first) picture. Raises ImageError."""
        return self._picture(self.pairs.images[row].as_py())

    def _picture(self, locator: str) -> Tensor:
        if self.cache is not None and locator in self.cache:
            return self.cache[locator]
        tensor: Tensor = self.transform(self.store.load(locator))
        if self.cache is not None:
            self.cache[locator] = tensor
        return tensor

    def __getitem__(self, row: int) -> Sample:
        error, images = "", []
        for locators in (self.pairs.images, self.pairs.table[SECOND]) if self.second else (self.pairs.images,):
            try:
                images.append(self._picture(locators[row].as_py()))
            except ImageError as failure:
                if not self.tolerant:
                    moved = "://" not in self.pairs.root and not Path(self.pairs.root).is_dir()
                    cure = (
                        f"{self.pairs.root}, where its pictures are, is not there: mount it, or put a link in its place"
                        if moved
                        else "reduce the data again with verify=decode, which quarantines such pictures"
                    )
                    raise ValueError(f"pair {self.pairs.uids[row].as_py()}: {failure}; {cure}") from failure
                images.append(torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8))
                error = error or str(failure)
        sample: Sample = {
            "image": images[0],
            "caption": self.pairs.captions[row].as_py(),
            "row": row,
            "image_id": int(self.image_ids[row]),
            "error": error,
            "columns": {name: self.pairs.table[name][row].as_py() for name in self.columns},
        }
        if self.second:
            sample["image_2"] = images[1]
        return sample


def _names(pairs: Pairs) -> pa.ChunkedArray:
    """(N,) of the pictures: their locators; of those inside tars and Parquet, where each caption may have a copy, the
    digests of their bytes if these are known."""
    if DIGEST not in pairs.table.column_names:
        return pairs.images
    known = pc.and_(pc.match_substring_regex(pairs.images, INSIDE), pc.is_valid(pairs.table[DIGEST]))
    return pc.if_else(known, pairs.table[DIGEST], pairs.images)


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    """(N,) from 0, equal where the values are."""
    encoded = pc.dictionary_encode(values).combine_chunks()
    return np.asarray(encoded.indices if len(values) else [], dtype=np.int64)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of equal picture size and equal columns -> a batch."""
    batch: Batch = {
        "images": torch.stack([sample["image"] for sample in samples]),
        "captions": [sample["caption"] for sample in samples],
        "rows": torch.tensor([sample["row"] for sample in samples]),
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
        "errors": [sample["error"] for sample in samples],
        "columns": {name: [sample["columns"][name] for sample in samples] for name in samples[0]["columns"]},
    }
    second = [sample["image_2"] for sample in samples if "image_2" in sample]
    if second:
        batch["images_2"] = torch.stack(second)
    return batch


class PairsData(L.LightningDataModule):
    """Shuffled batches of the pairs for training. Their order, and every draw of augmentation, depends only on ``seed``
    and on the position in the run: a resumed run continues with the next batch. A pair's probability of being drawn is
    inversely proportional to the number of pairs with exactly its caption, to the power of ``balance``."""

    def __init__(
        self,
        pairs: Pairs,
        *,
        image_size: int,
        resize_mode: str = "squash",
        batch_size: int,
        augment: str = "none",
        cache: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        balance: float = 0.0,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_number("balance", balance, "from 0, which draws all pairs alike, to 1, all captions", low=0, high=1)
        refuse_too_few(len(pairs), batch_size)
        options: dict[str, Any] = {"augment": augment, "cache": cache, "columns": columns}
        self.dataset = PairsDataset(pairs, image_size=image_size, resize_mode=resize_mode, **options)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.balance = balance
        self.loader: OrderedLoader | None = None
        self._restored: Mapping[str, int] | None = None

    def train_dataloader(self) -> DataLoader[Sample]:
        """Full batches only: contrastive losses depend on the batch's size."""
        run = self.trainer
        rank, ranks, together = (run.global_rank, run.world_size, run.accumulate_grad_batches) if run else (0, 1, 1)
        batches = ShuffledBatches(
            len(self.dataset), self.batch_size, seed=self.seed, rank=rank, ranks=ranks, together=together,
            groups=_numbers(self.dataset.pairs.captions) if self.balance else None, balance=self.balance,
        )  # fmt: skip
        self.loader = OrderedLoader(
            Drawn(self.dataset, seed=self.seed),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        if self._restored is not None:
            self.loader.load_state_dict(self._restored)
            self._restored = None
        return self.loader

    def state_dict(self) -> dict[str, int]:
        """How far the batches have come; travels in Lightning's checkpoints."""
        return {} if self.loader is None else self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, at the next `train_dataloader`."""
        self._restored = state_dict


def ordered_loader(dataset: Dataset[Sample], *, batch_size: int, num_workers: int = 0) -> DataLoader[Sample]:
    """Every sample once, in order: for extraction and evaluation."""
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
