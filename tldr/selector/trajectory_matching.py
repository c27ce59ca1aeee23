"""Dataset distillation for image-text pairs: new pictures and text embeddings with which a few steps of training lead
where an expert's many steps on the pool lead (Wu et al., TMLR 2024, arXiv 2308.07545; `tldr.nn.trajectory`).

Experts train a small dual encoder on the pool: a convolutional net on its pictures, a head on *frozen* embeddings of
its captions (the source's is BERT, ours ``clip.text_embedding``). Then, again and again, a student starts where some
expert was, takes ``steps`` steps on the learned pairs, and these and its step sizes are moved so that it comes nearer
to where the expert was ``expert_epochs`` later. ``similarity="lors"`` (LoRS, Xu et al., ICML 2024, arXiv 2406.03793)
learns besides how much each picture belongs to each text, at low rank.

The made pairs are like any others: a PNG, and the caption of the pool whose embedding is nearest to the learned one.
The exact values are in ``distilled.npz`` beside them, in the order of the pairs: ``images`` (n, 3, H, W), 1 is white,
not clipped; ``text_embedding`` (n, E), of the scale of the scorer's; ``step_sizes`` (2,), of the image encoder and the
text head; with LoRS, ``diagonal`` (n,), ``left`` and ``right`` (n, r). LoRS's authors give up one pair of a hundred for
these last; here they come on top.

Departures: the image encoder is a small `ConvEncoder` trained from scratch; pictures are not augmented; students are
differentiated through all of their steps (as Wu et al. do), where LoRS's release treats the steps as independent to
save memory (TESLA); experts stop at the last epoch that a student is compared with.

Shapes: N pairs of the pool, n made, E width of a text embedding, r rank.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from tldr.atomic import atomic_path
from tldr.check import check_flag
from tldr.data.export import write_pictures
from tldr.data.loading import PairsDataset, ordered_loader
from tldr.ledger import Meter, charge_found, metered
from tldr.nn.trajectory import Dual, Loss, Weights, contrastive, graded, low_rank, matching_loss, step, unroll
from tldr.nn.vision import CLIP_MEAN, CLIP_STD
from tldr.pairs import DIGEST, Pairs, derive_uid
from tldr.selector.base import Made, Maker, above_zero, at_least, counts, inside, one_of
from tldr.signal.sphere import nearest
from tldr.signal.store import Signals

SIMILARITIES = ("identity", "lors")
TEXT = "clip.text_embedding"
MEAN, STD = (np.array(three, np.float32).reshape(3, 1, 1) for three in (CLIP_MEAN, CLIP_STD))
SLOWEST = 1e-4  # a step size that would turn negative stays here
COUNTS = ("image_size", "width", "depth", "dim", "experts", "expert_epochs", "start_epochs", "expert_batch", "steps",
          "mini_batch", "iterations", "rank")  # fmt: skip


class TrajectoryMatching(Maker):
    """The dual encoder: pictures of ``image_size``, ``depth`` blocks of ``width`` channels, a common space of ``dim``.

    ``experts`` networks train with ``expert_batch`` pairs a step at ``expert_rate``. A student starts from one of an
    expert's first ``start_epochs`` epochs and takes ``steps`` steps, of ``mini_batch`` pairs each. In each of the
    ``iterations``, pictures, texts (unless ``learn_text`` is false), step sizes and similarities are updated at their
    rate (``rate_images``, ...), with ``momentum``."""

    needs = (TEXT,)

    def __init__(
        self,
        *,
        image_size: int = 32,
        width: int = 16,
        depth: int = 3,
        dim: int = 128,
        experts: int = 20,
        expert_epochs: int = 1,
        start_epochs: int = 2,
        expert_batch: int = 128,
        expert_rate: float = 0.1,
        temperature: float = 0.07,
        steps: int = 8,
        mini_batch: int = 20,
        iterations: int = 600,
        learn_text: bool = True,
        rate_images: float = 100.0,
        rate_texts: float = 30.0,
        rate_steps: float = 0.001,
        momentum: float = 0.5,
        similarity: str = "identity",
        rank: int = 10,
        alpha: float = 3.0,
        rate_similarity: float = 1.0,
    ) -> None:
        one_of(SIMILARITIES, similarity=similarity)
        given = dict(locals())
        counts(1, **{name: given[name] for name in COUNTS})
        above_zero(temperature=temperature, expert_rate=expert_rate, rate_images=rate_images)
        at_least(0, rate_texts=rate_texts, rate_steps=rate_steps, rate_similarity=rate_similarity)
        inside("a share of the step before", high=0.999, momentum=momentum)
        inside("a factor of LoRS's similarities", low=-1e6, high=1e6, alpha=alpha)
        check_flag("selector", learn_text=learn_text)
        if image_size < 2**depth:
            raise ValueError(f"selector.image_size={image_size} cannot be halved selector.depth={depth} times")
        self.network = {"image_size": image_size, "width": width, "depth": depth, "dim": dim}
        self.experts, self.expert_epochs, self.start_epochs = experts, expert_epochs, start_epochs
        self.expert_batch, self.expert_rate, self.temperature = expert_batch, expert_rate, temperature
        self.steps, self.mini_batch, self.iterations = steps, mini_batch, iterations
        self.learn_text, self.momentum, self.similarity = learn_text, momentum, similarity
        self.rates = {"images": rate_images, "texts": rate_texts, "steps": rate_steps, "similarity": rate_similarity}
        self.rank, self.alpha = rank, alpha

    def make(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, folder: Path) -> Made:
        """Train the experts, or find them; learn ``keep`` pairs from them; write these. Raises ValueError for a picture
        that cannot be decoded, naming its uid, and where learning diverges, naming the rates."""
        assert signals is not None
        signals.refuse_infinite(TEXT, pool)
        texts = signals[TEXT].read()
        nets = Dual.build(**self.network, text_width=texts.shape[1]).to(self.device)
        pixels, experts = self._prepare(pool, texts, signals, nets, seed)
        begun = np.sort(np.random.default_rng(seed).choice(len(pool), keep, replace=False))
        learned = self._learn(nets, experts, self._images(pixels[begun]), self._texts(texts[begun]), seed)
        if keep == 1:
            print("a single pair has no other to be contrasted with, so nothing is learned; lower compression")
        return self._write(pool, signals, begun, learned, folder)

    def _images(self, pixels: np.ndarray) -> Tensor:
        """(B, 3, H, W) uint8 -> normalised."""
        return torch.from_numpy((pixels.astype(np.float32) / 255 - MEAN) / STD).to(self.device)

    def _texts(self, embeddings: np.ndarray) -> Tensor:
        """(B, E) -> the same with entries of about 1, as the head's first layer expects."""
        return torch.from_numpy(embeddings.astype(np.float32) * embeddings.shape[1] ** 0.5).to(self.device)

    # ------------------------------------------------------------------------------------------------ experts

    def _prepare(
        self, pool: Pairs, texts: np.ndarray, signals: Signals, nets: Dual, seed: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """The pool's pictures (N, 3, H, W) uint8 and each expert's weights after every epoch (T + 1, P), on disk:
        jobs of a sweep share them."""
        words = hashlib.blake2b(texts.tobytes(), digest_size=8).hexdigest()
        size = self.network["image_size"]
        recipe = [self.network, self.expert_batch, self.expert_rate, self.temperature, pool.hash, words, seed]
        kind = torch.device(self.device).type
        recipe += [kind] * (kind != "cpu")  # a CPU's make the same again, to the bit
        digest = hashlib.blake2b(json.dumps(recipe).encode(), digest_size=8).hexdigest()
        shown, taught = signals.derived(f"pictures-{size}-{pool.hash}"), signals.derived(f"experts-{digest}")
        shown.mkdir(parents=True, exist_ok=True)
        taught.mkdir(parents=True, exist_ok=True)
        with FileLock(shown / "lock"):
            if not (shown / "pixels.npy").is_file():
                _save_pictures(pool, shown / "pixels.npy", size)
        pixels = np.load(shown / "pixels.npy", mmap_mode="r")
        epochs = self.start_epochs - 1 + self.expert_epochs
        files = [taught / f"{number}-{epochs}.npy" for number in range(self.experts)]
        with FileLock(taught / "lock"):
            todo = [number for number in range(self.experts) if not files[number].is_file()]
            batches = -(-len(pool) // self.expert_batch)
            if len(todo) < self.experts:
                charge_found(taught)
            with tqdm(total=len(todo) * epochs * batches, desc="training experts", unit="step") as bar:
                for number in todo:
                    with metered(taught, device=self.device) as meter:
                        trajectory = self._train(nets, pixels, texts, epochs, (seed, number), bar, meter)
                    with atomic_path(files[number]) as temporary, temporary.open("wb") as sink:
                        np.save(sink, trajectory)
        return pixels, [np.load(file, mmap_mode="r") for file in files]

    def _train(
        self,
        nets: Dual,
        pixels: np.ndarray,
        texts: np.ndarray,
        epochs: int,
        seeds: tuple[int, int],
        bar: Any,
        meter: Meter,
    ) -> np.ndarray:
        """(epochs + 1, P): an expert's weights, those of both networks in a row, from its beginning on. Raises
        ValueError where they are not finite."""
        rng = np.random.default_rng(seeds)
        start = nets.draw(torch.Generator().manual_seed(int(rng.integers(2**62))))
        weights = Weights(*(one.to(self.device) for one in start))
        rates = Weights(*torch.full((2,), self.expert_rate, device=self.device))
        loss = contrastive(self.temperature)
        trajectory = [torch.cat(weights)]
        for _ in range(epochs):
            order = rng.permutation(len(pixels))
            for begin in range(0, len(order), self.expert_batch):
                rows = np.sort(order[begin : begin + self.expert_batch])
                images, words = self._images(pixels[rows]), self._texts(texts[rows])
                with meter.batch(len(rows)):
                    weights, _ = step(nets, weights, images, words, rates, loss, graph=False)
                bar.update()
            trajectory.append(torch.cat(weights))
        if not trajectory[-1].isfinite().all():
            raise ValueError(f"an expert diverged; lower selector.expert_rate={self.expert_rate:g}")
        return torch.stack(trajectory).cpu().numpy()

    # ------------------------------------------------------------------------------------------------ learning

    def _learn(
        self, nets: Dual, experts: list[np.ndarray], images: Tensor, texts: Tensor, seed: int
    ) -> dict[str, np.ndarray]:
        """What `distilled.npz` holds, from the pairs it begins with."""
        generator = torch.Generator().manual_seed(seed)
        keep, rank = len(images), self.rank
        tensors = {"images": images, "texts": texts, "steps": torch.full((2,), self.expert_rate)}
        if self.similarity == "lors":
            left = torch.randn(keep, rank, generator=generator)
            tensors |= {"diagonal": torch.ones(keep), "left": left, "right": torch.zeros(keep, rank)}
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        frozen = () if self.learn_text else ("texts",)
        groups = [
            {"params": [tensor.requires_grad_()], "lr": self.rates.get(name, self.rates["similarity"])}
            for name, tensor in tensors.items()
            if name not in frozen
        ]
        optimizer = torch.optim.SGD(groups, momentum=self.momentum)
        with (
            metered(device=self.device) as meter,
            tqdm(range(self.iterations), desc="matching trajectories", unit="step") as bar,
        ):
            for iteration in bar:
                drawn = torch.randint(self.start_epochs, (), generator=generator)
                start, target = self._stretch(nets, experts[iteration % len(experts)], int(drawn))
                batches = self._batches(tensors, keep, generator)
                rates = Weights(*tensors["steps"])
                optimizer.zero_grad()
                with meter.batch(1):
                    student = unroll(nets, start, tensors["images"], tensors["texts"], rates, batches)
                    loss = matching_loss(student, start, target)
                    loss.backward()
                if not loss.isfinite():
                    raise ValueError(
                        f"the matching loss is {loss.item()} in iteration {iteration}; lower selector.rate_images, "
                        "selector.rate_texts, selector.rate_steps or selector.rate_similarity"
                    )
                optimizer.step()
                with torch.no_grad():
                    tensors["steps"].clamp_(min=SLOWEST)
                bar.set_postfix(matching=f"{loss.item():.3f}", refresh=False)
        found = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        found["images"] = found["images"] * STD + MEAN
        found["text_embedding"] = found.pop("texts") / texts.shape[1] ** 0.5
        found["step_sizes"] = found.pop("steps")
        return found

    def _stretch(self, nets: Dual, expert: np.ndarray, begin: int) -> tuple[Weights, Weights]:
        """Where an expert was after ``begin`` epochs, and ``expert_epochs`` later."""
        ends = (torch.from_numpy(np.array(expert[at])).to(self.device) for at in (begin, begin + self.expert_epochs))
        start, target = (Weights(*end.split([nets.image.size, nets.text.size])) for end in ends)
        return start, target

    def _batches(self, tensors: dict[str, Tensor], keep: int, generator: torch.Generator) -> list[tuple[Tensor, Loss]]:
        """What a student's steps see: rows, a new order whenever too few are left, and their loss."""
        size = min(self.mini_batch, keep)
        orders = (torch.randperm(keep, generator=generator)[: keep // size * size] for _ in range(self.steps))
        rows = torch.cat([order.view(-1, size) for order in orders])[: self.steps]
        return [(of.to(self.device), self._loss(tensors, of)) for of in rows]

    def _loss(self, tensors: dict[str, Tensor], rows: Tensor) -> Loss:
        if self.similarity == "identity":
            return contrastive(self.temperature)
        diagonal, left, right = (tensors[name][rows.to(self.device)] for name in ("diagonal", "left", "right"))
        return graded(low_rank(diagonal, left, right, self.alpha), self.temperature)

    # ------------------------------------------------------------------------------------------------ the pairs

    def _write(
        self, pool: Pairs, signals: Signals, begun: np.ndarray, learned: dict[str, np.ndarray], folder: Path
    ) -> Made:
        """Pictures and ``distilled.npz`` into ``folder``, and the pairs."""
        row, cosine = begun, np.ones(len(begun), np.float32)
        if self.learn_text:
            row, cosine = nearest(signals[TEXT], learned["text_embedding"])
        captions = pool.captions.take(row).to_pylist()
        names, digests = write_pictures(learned["images"], folder)
        uids = [derive_uid(name, caption) for name, caption in zip(names, captions, strict=True)]
        order = np.argsort(uids)  # the rows of the pairs
        with atomic_path(folder / "distilled.npz") as temporary, temporary.open("wb") as sink:
            arrays: dict[str, Any] = {k: v if k == "step_sizes" else v[order] for k, v in learned.items()}
            np.savez(sink, **arrays)
        columns = {
            "uid": uids,
            "image": names,
            "caption": captions,
            DIGEST: digests,
            "began_from": pool.uids.take(begun),
            "caption_from": pool.uids.take(row),
            "caption_similarity": cosine,
        }
        reasons = ["learned from in the experts"] * len(pool)
        for uid, of in zip(uids, begun, strict=True):
            reasons[of] = f"the beginning of {uid}"
        for uid, of, close in zip(uids, row, cosine, strict=True):
            reasons[of] += f"; its caption is nearest to the text of {uid}, cosine {close:.3g}"
        provenance = {"data": "trajectory_matching", "parent": pool.hash}
        return Made(Pairs.build(columns, root=str(folder.resolve()), provenance=provenance), reasons)


def _save_pictures(pool: Pairs, file: Path, size: int) -> None:
    """The pool's pictures (N, 3, size, size) uint8, never all of them in memory."""
    with atomic_path(file) as temporary:
        shape = (len(pool), 3, size, size)
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        with tqdm(total=len(pool), desc="reading pictures", unit="pair") as bar:
            for batch in ordered_loader(PairsDataset(pool, image_size=size), batch_size=256):
                pixels[batch["rows"].numpy()] = batch["images"].numpy()
                bar.update(len(batch["captions"]))
        pixels.flush()
