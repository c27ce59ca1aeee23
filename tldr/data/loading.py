"""From pairs to batches: decode, transform, collate.

Pictures travel as uint8, and the model normalises them on its device: a quarter of the memory and of the bus. A
picture that cannot be decoded stops the run with its uid; reading the pool with ``verify=decode`` has quarantined such
pictures before.

Shapes: N pairs, B of a batch, H = W = image_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypedDict

import lightning as L
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import InterpolationMode, v2

from tldr.data.images import ImageError, ImageStore
from tldr.pairs import Pairs

AUGMENTATIONS = ("none", "crop", "randaugment")


class Sample(TypedDict):
    """One pair: (3, H, W) uint8 picture, its caption, its row in the pairs, the number of its picture, and why the
    picture could not be decoded ("": it could)."""

    image: Tensor
    caption: str
    row: int
    image_id: int
    error: str


class Batch(TypedDict):
    """B pairs: (B, 3, H, W) uint8, B captions, (B,) rows, (B,) numbers that are equal where the picture is the same,
    and B errors."""

    images: Tensor
    captions: list[str]
    rows: Tensor
    image_ids: Tensor
    errors: list[str]


class RandAugment(v2.RandAugment):
    """BLIP's: two of ten operations, none of which changes colour (a caption may name it)."""

    _AUGMENTATION_SPACE: ClassVar = {
        name: v2.RandAugment._AUGMENTATION_SPACE[name]
        for name in (
            "Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness",
            "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
        )
    }  # fmt: skip


def transform(image_size: int, augment: str = "none") -> v2.Transform:
    """PIL RGB -> (3, H, W) uint8. ``none``: resize (evaluation); ``crop``: random resized crop of 0.2-1 of the area and
    flip; ``randaugment``: that, then `RandAugment` (BLIP's pre-training)."""
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment={augment!r}; choose from {', '.join(AUGMENTATIONS)}")
    bicubic = InterpolationMode.BICUBIC
    steps: list[torch.nn.Module] = [v2.Resize((image_size, image_size), bicubic)]
    if augment != "none":
        steps = [v2.RandomResizedCrop(image_size, (0.2, 1.0), interpolation=bicubic), v2.RandomHorizontalFlip()]
    if augment == "randaugment":
        steps.append(RandAugment(2, 5))
    return v2.Compose([*steps, v2.PILToTensor()])


class PairsDataset(Dataset[Sample]):
    """The pairs, decoded on demand. ``cache=True`` keeps every transformed picture in memory (not with augmentation):
    small sets then cost no decoding after the first epoch. A picture that cannot be decoded raises ValueError with its
    uid or, if ``tolerant``, gives a black one and says so in ``error``: for who keeps account of such pairs."""

    def __init__(
        self, pairs: Pairs, *, image_size: int, augment: str = "none", cache: bool = False, tolerant: bool = False
    ) -> None:
        if cache and augment != "none":
            raise ValueError(f"cache=true keeps pictures as they are; it cannot go with augment={augment}")
        self.pairs = pairs
        self.image_size, self.tolerant = image_size, tolerant
        self.store = ImageStore(pairs.root)
        self.transform = transform(image_size, augment)
        encoded = pc.dictionary_encode(pairs.images).combine_chunks()
        self.image_ids = np.asarray(encoded.indices if len(pairs) else [], dtype=np.int64)
        self.cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, row: int) -> Tensor:
        """(3, H, W) uint8 of the pair's picture. Raises ImageError."""
        image_id = int(self.image_ids[row])
        if self.cache is not None and image_id in self.cache:
            return self.cache[image_id]
        tensor: Tensor = self.transform(self.store.load(self.pairs.images[row].as_py()))
        if self.cache is not None:
            self.cache[image_id] = tensor
        return tensor

    def __getitem__(self, row: int) -> Sample:
        error = ""
        try:
            image = self.image(row)
        except ImageError as failure:
            if not self.tolerant:
                raise ValueError(
                    f"pair {self.pairs.uids[row].as_py()}: {failure}; reduce the data again with verify=decode, "
                    "which quarantines such pictures"
                ) from failure
            image, error = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8), str(failure)
        caption: str = self.pairs.captions[row].as_py()
        return {"image": image, "caption": caption, "row": row, "image_id": int(self.image_ids[row]), "error": error}


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of equal picture size -> a batch."""
    return {
        "images": torch.stack([sample["image"] for sample in samples]),
        "captions": [sample["caption"] for sample in samples],
        "rows": torch.tensor([sample["row"] for sample in samples]),
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
        "errors": [sample["error"] for sample in samples],
    }


class PairsData(L.LightningDataModule):
    """Shuffled batches of the pairs for training. The order is drawn from ``seed`` alone, whatever else the run
    draws."""

    def __init__(
        self,
        pairs: Pairs,
        *,
        image_size: int,
        batch_size: int,
        augment: str = "none",
        cache: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(pairs) < batch_size:
            raise ValueError(f"batch_size={batch_size}, but there are only {len(pairs)} pairs; lower batch_size")
        self.dataset = PairsDataset(pairs, image_size=image_size, augment=augment, cache=cache)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def train_dataloader(self) -> DataLoader[Sample]:
        """Full batches only: contrastive losses depend on the batch's size."""
        return DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            # A generator of its own: the loader's also seeds workers, so that the order would depend on their number.
            sampler=RandomSampler(self.dataset, generator=torch.Generator().manual_seed(self.seed)),
            drop_last=True,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def ordered_loader(dataset: Dataset[Sample], *, batch_size: int, num_workers: int = 0) -> DataLoader[Sample]:
    """Every sample once, in order: for extraction and evaluation."""
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
