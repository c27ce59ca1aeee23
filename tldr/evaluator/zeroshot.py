"""Zero-shot classification as CLIP's (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): which class's name, put
into sentences, is closest to the picture?

The embeddings of a class's sentences are averaged. A model that only matches scores each picture with each sentence.

Shapes: N pictures, B of a batch, C classes, T templates, E embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.evaluator.base import (
    DualEncoder,
    Evaluator,
    as_dual,
    as_matcher,
    check_matches,
    embed_texts,
    evaluating,
    matching,
    unfit_to_compare,
)
from tldr.metric.rank import hit_probability, match_all
from tldr.pairs import Pairs

IMAGENET = "imagenet"
# The seven that CLIP's authors found to do nearly as well on ImageNet as all their 80, of the notebook of prompts in
# their repository
TEMPLATES = {
    "clip": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )
}
RANKS = (1, 5)


class Zeroshot(Evaluator):
    """A pair's caption is the name of its class.

    ``classes``: the names to choose from; None for those that the pairs have, ``imagenet`` for the thousand of
    ImageNet-1k, whose captions may be WordNet ids (``n01440764``) or descriptions. ``templates`` hold ``{}`` where the
    name goes, or are named: ``clip``, those that CLIP's authors chose. A model without embeddings is asked about every
    picture with every sentence, at most ``max_matches`` times.
    """

    task = "classes"
    sources = "data=cifar10, or a folder's pictures with their class as caption"

    def __init__(
        self,
        *,
        templates: Sequence[str] | str = ("a photo of a {}.",),
        classes: Sequence[str] | str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        max_matches: int = 10_000_000,
        progress: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, progress=progress)
        if isinstance(templates, str):
            if templates not in TEMPLATES:
                raise ValueError(
                    f"evaluator.zeroshot.templates={templates!r}; give a list of sentences, or {', '.join(TEMPLATES)}"
                )
            templates = TEMPLATES[templates]
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(f"evaluator.zeroshot.templates={list(templates)}: each needs one {{}} for the name")
        if isinstance(classes, str) and classes != IMAGENET:
            raise ValueError(f"evaluator.zeroshot.classes={classes!r}; give a list of names, {IMAGENET}, or null")
        self.templates, self.classes, self.max_matches = tuple(templates), classes, max_matches

    def lacks(self, model: nn.Module) -> str:
        """Embeddings, or the judgement of pairs."""
        return unfit_to_compare(model)

    def __call__(self, model: nn.Module, pairs: Pairs) -> dict[str, float]:
        """``zeroshot/top1`` and ``top5`` in percent, and among how many ``classes``, of how many ``images``."""
        self.check(model, pairs)
        names, own = self._labels(pairs)
        texts = [template.replace("{}", name) for name in names for template in self.templates]
        dataset = PairsDataset.seen_by(as_dual(model), pairs)
        embeds = isinstance(model, DualEncoder)
        if not embeds:
            check_matches(len(pairs) * len(texts), self.max_matches, "zeroshot")
        hits = torch.zeros(len(RANKS), dtype=torch.float64)
        with evaluating(model), self.bar("classify", len(pairs), " images") as bar:
            centres = self._centres(model, texts) if embeds else torch.empty(0)
            for batch in ordered_loader(dataset, batch_size=self.batch_size, num_workers=self.num_workers):
                images = batch["images"].to(as_dual(model).device)
                if embeds:
                    scores = as_dual(model).embed_images(images).float() @ centres.T  # (B, C)
                else:
                    scores = self._matched(model, images, texts)
                right = F.one_hot(own[batch["rows"]], len(names)).bool().to(scores.device)
                hits += hit_probability(scores, right, RANKS).sum(0).cpu()
                bar.update(len(images))
        top1, top5 = (100 * hits / len(pairs)).tolist()
        counts = {"zeroshot/classes": len(names), "zeroshot/images": len(pairs)}
        return {"zeroshot/top1": top1, "zeroshot/top5": top5, **counts}

    def _labels(self, pairs: Pairs) -> tuple[list[str], Tensor]:
        """The classes' names (C), and the number (N,) of each picture's class."""
        captions = np.asarray(pairs.captions.to_pylist(), dtype=object)
        if self.classes == IMAGENET:
            names, places = imagenet()
        else:
            names = sorted(set(captions)) if self.classes is None else list(self.classes)
            places = {name: place for place, name in enumerate(names)}
        strangers = sorted(set(captions) - set(places))
        if strangers:
            raise ValueError(
                f"zeroshot: {strangers[0]!r} is none of the {len(names)} classes (nor are {len(strangers) - 1} others)"
                f": captions must be names of classes. Use data where they are ({self.sources}), or set "
                "evaluator.zeroshot.classes=..."
            )
        return names, torch.tensor([places[caption] for caption in captions])

    def _centres(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """(C, E) the classes' mean sentences, of length 1."""
        with self.bar("embed classes", len(texts), " texts") as bar:
            embedded = embed_texts(as_dual(model), texts, batch_size=self.batch_size, bar=bar)
        return F.normalize(embedded.unflatten(0, (-1, len(self.templates))).mean(1), dim=-1)

    def _matched(self, model: nn.Module, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(B, C) mean log-odds of each picture with a class's sentences."""
        tokens = as_matcher(model).image_tokens(images).cpu()
        match = matching(as_matcher(model), tokens, texts)
        scores = match_all(match, len(images), len(texts), batch_size=self.batch_size, seen=lambda _: None)
        return scores.unflatten(1, (-1, len(self.templates))).mean(2)


def imagenet() -> tuple[list[str], Mapping[str, int]]:
    """The thousand names of ImageNet-1k, and the class of every WordNet id, description and name that only one has.

    A name is the first of its synset's; all of them where two classes share the first. (Two are called crane and
    nothing else: a tie, of which one is right half of the time.)
    """
    info = ImageNetInfo()
    synsets = info.label_names()
    described = [info.index_to_description(place) for place in range(len(synsets))]
    first = [description.split(",")[0] for description in described]
    shared = Counter(first)
    names = [description if shared[name] > 1 else name for name, description in zip(first, described, strict=True)]
    places = {synset: place for place, synset in enumerate(synsets)}
    for words in (described, names):
        several = Counter(words)
        places |= {word: place for place, word in enumerate(words) if several[word] == 1}
    return names, places
