"""Neural Data Server (Yan, Acuna & Fidler, CVPR 2020, arXiv 2001.02799): the server divides its pool into parts and
trains an expert on each; how well an expert does on the client's data says how useful its part is to the client.

Parts are clusters of the pictures' embeddings. The experts' scores (`tldr.signal.experts`), moved and stretched to
[0, 1], become the parts' weights w by a softmax; every pair of part S_k has the probability w_k / |S_k|, and as many
are drawn without replacement as are to be kept, by the largest of log probability plus Gumbel noise.

Shapes: N pairs, K parts, n pairs of the client.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from tldr.atomic import atomic_path
from tldr.cluster import POINTS_PER_CENTROID, KMeans
from tldr.data.loading import PairsDataset
from tldr.ledger import charge_found, metered
from tldr.nn.convnet import ConvNet
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector, Target, above_zero, best, counts, one_of
from tldr.signal.experts import PairExperts, RotationExperts
from tldr.signal.feature import sampled
from tldr.signal.store import Signal, Signals

PROXIES = {"image_text": "mean loss", "rotation": "rotation accuracy"}
EXAMPLES = 2048  # of a part, and of the client, that are looked at


class NeuralDataServer(Selector):
    """``parts`` at most, of ``rows_per_part`` pairs at least on average. ``proxy`` is what experts learn: to match the
    ``image_text`` pairs, or the ``rotation`` of pictures of ``image_size`` pixels; each for ``steps`` steps. The lower
    the ``temperature``, the more the best part is preferred. ``target`` is the client's data."""

    needs_target = True

    def __init__(
        self,
        *,
        target: Any = None,
        parts: int = 50,
        rows_per_part: int = 128,
        proxy: str = "image_text",
        temperature: float = 0.1,
        steps: int = 150,
        image_size: int = 32,
    ) -> None:
        one_of(PROXIES, proxy=proxy)
        counts(1, parts=parts, rows_per_part=rows_per_part, steps=steps)
        counts(1, image_size=image_size)
        ConvNet(image_size=image_size)  # raises where its pictures are too small
        above_zero(temperature=temperature)
        self.target, self.parts, self.rows_per_part, self.proxy = target, parts, rows_per_part, proxy
        self.temperature, self.steps, self.image_size = temperature, steps, image_size
        text = ("clip.text_embedding",) if proxy == "image_text" else ()
        self.needs = ("clip.embedding", *text)

    @property
    def target_needs(self) -> tuple[str, ...]:
        """None of the experts in rotation, who look at pictures."""
        return () if self.proxy == "rotation" else self.needs

    def choose(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, target: Target
    ) -> Selection:
        """Divide, train experts, ask them about the client's data, draw."""
        assert signals is not None
        for name in self.needs:
            signals.refuse_infinite(name, pool)
        part, parts = self._divide(signals["clip.embedding"], seed)
        learn = self._learn_rotation if self.proxy == "rotation" else self._learn_pairs
        score = learn(pool, signals, part, parts, target, seed)  # (K,)
        spread = np.ptp(score)
        merit = (score - score.min()) / spread if spread > 0 else np.zeros(parts)
        log_weight = merit / self.temperature
        log_weight = log_weight - np.logaddexp.reduce(log_weight)
        sizes = np.bincount(part, minlength=parts)
        noise = np.random.default_rng(seed).gumbel(size=len(pool))
        draw = (log_weight - np.log(sizes))[part] + noise
        rows, _ = best(draw, keep)
        kept = np.zeros(len(pool), bool)
        kept[rows] = True
        weight, told = np.exp(log_weight), score if self.proxy == "rotation" else -score
        name = PROXIES[self.proxy]
        words = [f"part {k} of weight {weight[k]:.2g} ({name} {told[k]:.3g})" for k in range(parts)]
        reasons = [f"{words[k]}, {'drawn' if own else 'not drawn'}" for k, own in zip(part, kept, strict=True)]
        scores = {"cluster": part, "weight": (weight / sizes)[part], "expert": score[part]}
        return Selection(rows, reasons, scores, draw)

    def _divide(self, embedding: Signal, seed: int) -> tuple[np.ndarray, int]:
        """(N,) the part of every pair, and their number; no part is empty."""
        count = len(embedding)
        parts = max(1, min(self.parts, count // self.rows_per_part))
        if parts < self.parts:
            print(f"selector.parts={self.parts} is lowered to {parts}: {self.rows_per_part} pairs or more in each")
        sample = sampled(count, POINTS_PER_CENTROID * parts, seed=seed)
        kmeans = KMeans.fit(embedding.read(sample).astype(np.float32), parts, seed=seed)
        label = np.concatenate([kmeans.assign(np.asarray(chunk, np.float32))[0] for chunk in embedding.chunks()])
        there, label = np.unique(label, return_inverse=True)
        return label, len(there)

    def _learn_pairs(
        self, pool: Pairs, signals: Signals, part: np.ndarray, parts: int, target: Target, seed: int
    ) -> np.ndarray:
        assert target.signals is not None
        for name in self.needs:
            target.signals.refuse_infinite(name, target.pairs)
        rows = examples(part, parts, seed)  # (K, R)
        image, text = (_embeddings(signals[name], rows) for name in self.needs)
        file = signals.derived(self._name([image.numpy(), text.numpy(), rows], seed)) / "experts.pt"
        if file.is_file():
            experts = PairExperts(torch.load(file, weights_only=True))
            charge_found(file.parent)
        else:
            with metered(file.parent) as meter:
                places = torch.from_numpy(rows)
                experts = PairExperts.train(image, text, places, steps=self.steps, seed=seed, meter=meter)
                with atomic_path(file) as temporary:
                    torch.save(experts.maps, temporary)
        client = _some(len(target.pairs), seed)
        theirs = [_embeddings(target.signals[name], client) for name in self.needs]
        return experts.scores(*theirs, seed=seed)

    def _learn_rotation(
        self, pool: Pairs, signals: Signals, part: np.ndarray, parts: int, target: Target, seed: int
    ) -> np.ndarray:
        rows = examples(part, parts, seed)
        named = np.frombuffer(pool.hash.encode(), np.uint8)
        file = signals.derived(self._name([rows, named], seed)) / "experts.pt"
        if file.is_file():
            state = torch.load(file, weights_only=True)
            experts = RotationExperts.load(state, image_size=self.image_size, device=self.device)
            charge_found(file.parent)
        else:
            with metered(file.parent, device=self.device) as meter:
                pictures = [self._pictures(pool, np.unique(own)) for own in rows]
                experts = RotationExperts.train(pictures, steps=self.steps, seed=seed, meter=meter, device=self.device)
                with atomic_path(file) as temporary:
                    torch.save(experts.state(), temporary)
        return experts.scores(self._pictures(target.pairs, _some(len(target.pairs), seed)))

    def _pictures(self, pairs: Pairs, rows: np.ndarray) -> torch.Tensor:
        """(n, 3, H, H) uint8."""
        dataset = PairsDataset(pairs, image_size=self.image_size)
        return torch.stack([dataset[int(row)]["image"] for row in rows])

    def _name(self, content: list[np.ndarray], seed: int) -> str:
        """Of the experts, by all that they learn from."""
        digest = hashlib.blake2b(repr((self.steps, self.image_size, seed)).encode(), digest_size=8)
        for array in content:
            digest.update(np.ascontiguousarray(array).tobytes())
        return f"experts-{self.proxy}-{digest.hexdigest()}"


def examples(part: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """(K, R) rows of each part, drawn without replacement; where it has too few, they are repeated."""
    rng = np.random.default_rng(seed)
    order = np.argsort(part, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(part, minlength=parts))[:-1])
    most = min(EXAMPLES, max(map(len, members)))
    return np.stack([np.resize(rng.permutation(own), most) for own in members])


def _some(count: int, seed: int) -> np.ndarray:
    """At most `EXAMPLES` of ``count`` rows, sorted."""
    return np.sort(np.random.default_rng(seed).choice(count, min(count, EXAMPLES), replace=False))


def _embeddings(signal: Signal, rows: np.ndarray) -> torch.Tensor:
    """(*rows.shape, E) unit vectors."""
    wanted, places = np.unique(rows, return_inverse=True)
    values = torch.from_numpy(signal.read(wanted).astype(np.float32))
    return torch.nn.functional.normalize(values, dim=-1)[torch.from_numpy(places.reshape(rows.shape))]
