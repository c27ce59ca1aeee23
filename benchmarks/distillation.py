"""Dataset distillation on CIFAR-10: what do a hundred learned pictures teach, and what as many real ones?

As Wang et al. 2018 (arXiv 1811.10959) ask, at a size for one CPU core (15 minutes): a wide LeNet instead of their
AlexCifarNet, and hundreds of iterations instead of 19,600. `selector=dataset_distillation` learns pictures once for
randomly initialised networks, and once for a fixed initialisation; they are compared with real pictures drawn at
random, k-means centroids of each class, and each class's mean. These take as many steps at the best rate, and the best
number of steps at the best rate, both chosen on training pictures used for nothing else. Accuracies are on test
pictures, over networks with new initialisations; ± is the standard deviation over these (and draws). Every number is
kept in --out: run again, only what is missing is computed. Prints a table, and writes it as Markdown and JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _command import composed, parted, read
from _results import kept, markdown, publish
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from tldr.atomic import write_json
from tldr.cluster import KMeans
from tldr.data.loading import PairsDataset, ordered_loader
from tldr.nn.distillation import Distilled, Steps, Weights, accuracy, train, xavier
from tldr.pairs import Pairs

INITS = ("random", "fixed")
REAL = {"random real": "drawn", "k-means": "centroids", "mean of each class": "means"}
RATES = (0.01, 0.02, 0.05, 0.1)  # that the real ones may have
PASSES = (3, 10, 30, 100)  # and so many over all of them
PUBLISHED = {"distilled, random": "36.8 ± 1.2", "distilled, fixed, own beginning": "54", "everything": "80"}
CHOSEN, TESTED = 10_000, 20_000  # seeds of beginnings: those that choose a rate, and those that are reported
QUICK = {"iterations": 60, "size": 5000, "test_size": 2000, "batch_size": 128, "epochs": 1}


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100, help="number of pictures to make, all classes together")
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=256, help="real pictures per iteration")
    parser.add_argument("--step-size", type=float, default=0.02, help="initial step size")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate of pictures and step sizes")
    parser.add_argument("--passes", type=int, default=3, help="passes over the made pictures")
    parser.add_argument("--network", default="lenet", choices=("lenet", "alexcifarnet"))
    parser.add_argument("--width", type=int, default=24, help="of the network; the source's LeNet 6, AlexCifarNet 64")
    parser.add_argument("--size", type=int, default=49_000, help="training pictures, equally many of each class")
    parser.add_argument("--validation", type=int, default=1000, help="others, to choose the rates of real pictures on")
    parser.add_argument("--test-size", type=int, default=5_000)
    parser.add_argument("--beginnings", type=int, default=6, help="initialisations to average the accuracies over")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of training on everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=" ".join(f"{key}={value}" for key, value in QUICK.items()))
    parser.add_argument("--out", type=Path, default=Path("outputs/distillation"))
    given = parser.parse_args()
    if given.quick:
        vars(given).update(QUICK)

    rows = Bench(given).rows()
    publish(given.out, rows, vars(given), table_of(rows))


class Bench:
    """All numbers of one setting."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        setting = [
            given.pictures, given.network, given.width, given.size, given.validation, given.test_size, given.beginnings,
            given.seed,
        ]  # fmt: skip
        self.home: Path = given.out / "-".join(map(str, setting))
        recipe = [given.iterations, given.batch_size, given.step_size, given.lr, given.passes]
        self.made = {init: self.home / "-".join(map(str, [init, *recipe])) for init in INITS}

    def rows(self) -> list[dict[str, Any]]:
        """Distilled ones, real ones, and everything."""
        rows = []
        for init in INITS:
            rows += kept(self.made[init] / "rows.json", lambda init=init: self.distilled(init))
        for name, what in REAL.items():
            file = self.home / f"{what}-{self.given.passes}.json"
            rows += kept(file, lambda name=name, what=what: self.real(name, what))
        return rows + kept(self.home / f"everything-{self.given.epochs}.json", self.everything)

    # ------------------------------------------------------------------------------------------------ what is made

    def distilled(self, init: str) -> list[dict[str, Any]]:
        """Learn them; as they are, as their PNGs have them, and from the beginning for which they were learned."""
        learned, seconds = self.learn(init)
        steps = learned.sequence(self.net)
        count = steps.rates.numel()
        if init == "random":
            rounded = np.rint(learned.images.clip(0, 1) * 255).astype(np.uint8)
            png = Distilled(**{**vars(learned), "images": (rounded / 255).astype(np.float32)}).sequence(self.net)
            return [
                row("distilled, random", self.tested([steps]), count, seconds),
                row("distilled, random, as PNG", self.tested([png]), count),
            ]
        assert steps.start is not None
        own = self.accuracy(train(self.net, steps.start, steps), *self.test)
        return [
            row("distilled, fixed, own beginning", [own], count, seconds),
            row("distilled, fixed, other beginnings", self.tested([steps]), count),
        ]

    def learn(self, init: str) -> tuple[Distilled, float]:
        """By the selector, which leaves its pictures in the folder."""
        given, folder = self.given, self.made[init]
        if not (folder / "seconds.json").is_file():
            print(f"distilling {given.pictures} pictures, {init} beginning", flush=True)
            options = {"init": init, "iterations": given.iterations, "batch_size": given.batch_size, "lr": given.lr}
            options |= {
                "step_size": given.step_size,
                "passes": given.passes,
                "network": given.network,
                "width": given.width,
            }
            words = [f"selector.{key}={value}" for key, value in options.items()]
            cfg = composed("select", "selector=dataset_distillation", *words).selector
            maker = instantiate(OmegaConf.to_container(cfg), _convert_="all")
            folder.mkdir(parents=True, exist_ok=True)
            began = time.perf_counter()
            maker(self.pools[0], None, keep=given.pictures, seed=given.seed, folder=folder).pairs.write(folder)
            write_json(folder / "seconds.json", time.perf_counter() - began)
        return Distilled.load(folder / "distilled.npz"), json.loads((folder / "seconds.json").read_text())

    # ------------------------------------------------------------------------------------------------ what is real

    def real(self, name: str, what: str) -> list[dict[str, Any]]:
        """With as many steps as the distilled ones, and with as many as is best."""
        print(f"{name}: looking for its rate", flush=True)
        draws = [self.batches(what, draw) for draw in range(3 if what == "drawn" else 1)]
        passes = sorted({self.given.passes, *PASSES})
        found: dict[tuple[int, float], list[float]] = {}
        for rate in RATES:
            for number in range(3):
                images, labels = draws[number % len(draws)]
                weights, done = xavier(self.net, torch.Generator().manual_seed(CHOSEN + number)), 0
                for goal in passes:
                    rates = torch.full((goal - done, len(images)), rate)
                    weights, done = train(self.net, weights, Steps(images, labels, rates)), goal
                    found.setdefault((goal, rate), []).append(self.accuracy(weights, *self.validation))
        rows = []
        for told, among in (("as many steps", [self.given.passes]), ("best number of steps", passes)):
            goal, rate = max((key for key in found if key[0] in among), key=lambda key: fmean(found[key]))
            steps = [Steps(images, labels, torch.full((goal, len(images)), rate)) for images, labels in draws]
            rows.append(row(f"{name}, {told}", self.tested(steps), goal * len(draws[0][0])) | {"rate": rate})
        return rows

    def batches(self, what: str, draw: int) -> tuple[Tensor, Tensor]:
        """(T, C, 3, S, S) and (T, C): a picture of each class in every step."""
        (images, labels), each = self.pool, self.given.pictures // 10
        rng, found = np.random.default_rng([self.given.seed, draw]), []
        for own in (images[labels == label] for label in range(10)):
            if what == "drawn":
                found.append(own[rng.permutation(len(own))[:each]])
            elif what == "means":
                found.append(own.mean(0, keepdim=True).expand(each, -1, -1, -1))
            else:
                fitted = KMeans.fit(own.flatten(1).numpy(), each, seed=self.given.seed)
                found.append(torch.from_numpy(np.asarray(fitted.centroids)).view(each, *own.shape[1:]))
        return torch.stack(found, 1), torch.arange(10).expand(each, -1)

    def everything(self) -> list[dict[str, Any]]:
        """Adam over all pictures of the pool, its rate to 0 on half a cosine."""
        images, labels = self.pool
        generator = torch.Generator().manual_seed(TESTED)
        weights = {name: weight.requires_grad_() for name, weight in xavier(self.net, generator).items()}
        count = self.given.epochs * (len(images) // 128)
        optimizer = torch.optim.Adam(list(weights.values()), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
        with tqdm(total=count, desc="training on everything", unit="step") as bar:
            for _ in range(self.given.epochs):
                order = torch.randperm(len(images), generator=generator)
                for rows in order[: len(order) // 128 * 128].split(128):
                    optimizer.zero_grad()
                    F.cross_entropy(functional_call(self.net, weights, (images[rows],)), labels[rows]).backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
        return [row("everything", [self.accuracy(weights, *self.test)], count) | {"pictures": len(images)}]

    # ------------------------------------------------------------------------------------------------ test

    def tested(self, several: list[Steps]) -> list[float]:
        """An accuracy for each held-out beginning, in turn on each of ``several``."""
        found = []
        for number in range(self.given.beginnings):
            start = xavier(self.net, torch.Generator().manual_seed(TESTED + number))
            weights = train(self.net, start, several[number % len(several)])
            found.append(self.accuracy(weights, *self.test))
        return found

    def accuracy(self, weights: Weights, images: Tensor, labels: Tensor) -> float:
        """In percent."""
        return 100 * accuracy(self.net, weights, images, labels)

    @cached_property
    def net(self) -> torch.nn.Module:
        """Whose weights are given to it."""
        return self.learn("random")[0].build(10)

    @cached_property
    def pools(self) -> tuple[Pairs, Pairs, Pairs]:
        """Training, validation and test pictures, as many of each class."""
        training, test = (read("data=cifar10", f"data.split={split}") for split in ("train", "test"))
        own, other = parted(training, self.given.size, self.given.validation)
        return own, other, parted(test, self.given.test_size)[0]

    @cached_property
    def pool(self) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) as the network sees them, and their labels (N,)."""
        return self.pictures(self.pools[0])

    @cached_property
    def validation(self) -> tuple[Tensor, Tensor]:
        """The same of those that choose."""
        return self.pictures(self.pools[1])

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """The same of those that tell."""
        return self.pictures(self.pools[2])

    def pictures(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Decode and normalise, as the distilled ones are."""
        loader = ordered_loader(PairsDataset(pairs, image_size=32), batch_size=500)
        learned = self.learn("random")[0]
        parts = [learned.normalised(batch["images"].numpy()) for batch in tqdm(loader, desc="reading pictures")]
        return torch.cat(parts), torch.from_numpy(pairs.column("label").astype(np.int64))


def row(name: str, accuracies: list[float], steps: int, seconds: float | None = None) -> dict[str, Any]:
    """A row of the table."""
    return {"what": name, "steps": steps, "accuracies": accuracies, "seconds": seconds}


def table_of(rows: list[dict[str, Any]]) -> str:
    """The table: accuracy on test pictures, mean and standard deviation, beside what the paper reports."""
    lines = [["training pictures", "steps", "rate", "accuracy", "published, AlexCifarNet", "seconds to learn"]]
    for told in rows:
        values = told["accuracies"]
        mean = f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
        seconds = "" if told["seconds"] is None else f"{told['seconds']:,.0f}"
        rate = f"{told['rate']:g}" if "rate" in told else ""
        lines.append([told["what"], f"{told['steps']:,}", rate, mean, PUBLISHED.get(told["what"], ""), seconds])
    return markdown(lines)


if __name__ == "__main__":
    main()
