"""Experts on parts of a pool, and how well each knows a client's data: Neural Data Server (Yan, Acuna & Fidler, CVPR
2020, arXiv 2001.02799), whose experts need no labels.

    rotation    a small convolutional network for each part tells by how many quarter turns a picture was rotated
                (Gidaris et al. 2018, arXiv 1803.07728); its score is its accuracy on the client's rotated pictures
    image_text  two linear maps for each part, over frozen embeddings of picture and caption and beginning as the
                identity, learn to tell the part's pairs from one another (InfoNCE); the score is minus the mean loss on
                the client's pairs. The paper has no such proxy: it is ours, for data whose task is to match

Experts are trained by a plain loop, those of image_text all at once as one batch of matrices: each is seconds of work
that nobody resumes or watches, and a Trainer for each would take longer to start than to run.

Shapes: K parts, R rows of each to learn from (in turn again where it has fewer), B of a batch, E embedding
width, n pairs of the client.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tldr.ledger import Meter
from tldr.nn.convnet import ConvNet

TURNS = 4
TEMPERATURE = 0.07  # of InfoNCE: CLIP's to begin with


class RotationExperts:
    """``networks``, one for each part."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = list(networks)

    @classmethod
    def train(
        cls,
        parts: Sequence[Tensor],
        *,
        steps: int,
        batch_size: int = 32,
        lr: float = 5e-3,
        channels: int = 16,
        seed: int,
        meter: Meter,
        device: str = "cpu",
    ) -> RotationExperts:
        """From the pictures (R, 3, H, H) uint8 of every part; a step sees ``batch_size`` of them in all turns."""
        networks = []
        for number, pictures in enumerate(parts):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # the same beginning: what differs is what they saw
                network = _rotation_network(pictures.shape[-1], channels).to(device)
            optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
            generator = torch.Generator().manual_seed(seed + number)
            for _ in range(steps):
                rows = torch.randint(len(pictures), (batch_size,), generator=generator)
                images, turns = rotations(pictures[rows].to(device))
                optimizer.zero_grad()
                with meter.batch(len(images)):
                    F.cross_entropy(network(images), turns).backward()
                optimizer.step()
                schedule.step()
            networks.append(network.eval())
        return cls(networks)

    @torch.no_grad()
    def scores(self, pictures: Tensor, *, batch_size: int = 256) -> np.ndarray:
        """(K,) accuracy on the client's (n, 3, H, H) uint8 in all turns."""
        right = np.zeros(len(self.networks))
        device = next(self.networks[0].parameters()).device
        for some in pictures.split(batch_size):
            images, turns = rotations(some.to(device))
            right += [int((network(images).argmax(1) == turns).sum()) for network in self.networks]
        return right / (TURNS * len(pictures))

    def state(self) -> dict[str, Tensor]:
        """What `load` needs."""
        return {f"{k}/{key}": v.cpu() for k, net in enumerate(self.networks) for key, v in net.state_dict().items()}

    @classmethod
    def load(
        cls, state: dict[str, Tensor], *, image_size: int, channels: int = 16, device: torch.device | str = "cpu"
    ) -> RotationExperts:
        """The experts of a `state`."""
        count = 1 + max(int(key.partition("/")[0]) for key in state)
        networks = [_rotation_network(image_size, channels) for _ in range(count)]
        for k, network in enumerate(networks):
            own = {key.partition("/")[2]: value for key, value in state.items() if key.startswith(f"{k}/")}
            network.load_state_dict(own)
        return cls([network.eval().to(device) for network in networks])


class PairExperts:
    """``maps`` (K, 2, E, E): what is added to the embeddings of pictures and of captions."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps

    @classmethod
    def train(
        cls,
        image: Tensor,
        text: Tensor,
        rows: Tensor,
        *,
        steps: int,
        batch_size: int = 64,
        lr: float = 3e-3,
        seed: int,
        meter: Meter,
    ) -> PairExperts:
        """From the unit embeddings ``image`` and ``text`` (K, R, E) of every part's ``rows`` (K, R), numbers that are
        equal where the pair is the same: a pair is no negative of itself."""
        parts, _, width = image.shape
        maps = torch.zeros(parts, 2, width, width, requires_grad=True)
        optimizer = torch.optim.AdamW([maps], lr=lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            places = torch.randint(image.shape[1], (parts, batch_size), generator=generator)
            a, b = (torch.take_along_dim(each, places[..., None], 1) for each in (image, text))
            optimizer.zero_grad()
            with meter.batch(parts * batch_size):
                _itc(maps, a, b, torch.take_along_dim(rows, places, 1)).sum().backward()
            optimizer.step()
            schedule.step()
        return cls(maps.detach())

    @torch.no_grad()
    def scores(self, image: Tensor, text: Tensor, *, seed: int, batch_size: int = 256) -> np.ndarray:
        """(K,) minus the mean loss on the client's (n, E) pairs, in batches drawn once for all experts."""
        order = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))
        total = torch.zeros(len(self.maps))
        for some in order.split(batch_size):
            total += len(some) * _itc(self.maps, image[some][None], text[some][None], some[None])
        return -(total / len(image)).double().numpy()


def _itc(maps: Tensor, image: Tensor, text: Tensor, rows: Tensor) -> Tensor:
    """(K,) InfoNCE in both directions of (K or 1, B, E) pairs."""
    a, b = (F.normalize(each + each @ maps[:, side], dim=-1) for side, each in enumerate((image, text)))
    logits = a @ b.transpose(1, 2) / TEMPERATURE  # (K, B, B)
    place = torch.arange(rows.shape[1])
    same = (rows[:, :, None] == rows[:, None, :]) & (place[:, None] != place)
    logits = logits.masked_fill(same, -torch.inf)
    own = logits.diagonal(dim1=1, dim2=2)
    return ((logits.logsumexp(1) + logits.logsumexp(2)) / 2 - own).mean(1)


def rotations(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, H, H) -> all four turns (4 B, 3, H, H), and which each is (4 B,)."""
    turned = torch.cat([pictures.rot90(turn, (2, 3)) for turn in range(TURNS)])
    return turned, torch.arange(TURNS, device=pictures.device).repeat_interleave(len(pictures))


def _rotation_network(image_size: int, channels: int) -> nn.Module:
    trunk = ConvNet(image_size=image_size, channels=channels)
    return nn.Sequential(trunk, nn.Linear(trunk.width, TURNS))
