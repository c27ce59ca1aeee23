"""Questions about a picture with short answers: what VQA (https://arxiv.org/abs/1612.00837) asks, over rendered scenes.

As in its second version, a question says little about its answer: for the same question, no answer occurs more often
than the median one (if there are two answers, both occur equally often).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tldr.data.view import RELATIONS, View, articled, holds, plural

# How much of each family is asked, in parts.
FAMILIES = {
    "is there": 3, "is the background": 1, "is it": 2, "how many things": 1, "how many": 2, "what colour": 2,
    "what background": 1, "what is at": 2, "what is of colour": 1, "where": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question about the picture number ``picture``. ``kind`` is VQA's answer type: yes/no, number or other."""

    picture: int
    family: str
    text: str
    answer: str

    @property
    def kind(self) -> str:
        """VQA's type of the answer."""
        return "yes/no" if self.answer in ("yes", "no") else "number" if self.answer.isdigit() else "other"


def asked(views: Sequence[View], count: int, rng: np.random.Generator) -> list[Asked]:
    """``count`` balanced questions about the pictures, or as many as these pictures have."""
    by_family = {family: _rounds(each, rng) for family, each in _by_family(views, rng).items()}
    rounds = {family: turns for family, turns in by_family.items() if turns}
    taken: Counter[str] = Counter()
    found: list[Asked] = []
    while len(found) < count and rounds:
        family = min(rounds, key=lambda name: taken[name] / FAMILIES[name])
        turn = rounds[family].pop()
        found += turn
        taken[family] += len(turn)
        if not rounds[family]:
            del rounds[family]
    return found[:count]


def _by_family(views: Sequence[View], rng: np.random.Generator) -> dict[str, list[Asked]]:
    found: dict[str, list[Asked]] = {family: [] for family in FAMILIES}
    for number, view in enumerate(views):
        other = views[int(rng.integers(len(views)))]  # what is asked for and not there, is there elsewhere
        for family, text, answer in _candidates(view, other, rng):
            found[family].append(Asked(number, family, articled(text), answer))
    return found


def _rounds(candidates: Sequence[Asked], rng: np.random.Generator) -> list[list[Asked]]:
    """Balanced rounds, shuffled: each has one picture for every answer that the question still has."""
    by_text: dict[str, dict[str, list[Asked]]] = defaultdict(lambda: defaultdict(list))
    for each in candidates:
        by_text[each.text][each.answer].append(each)
    rounds = []
    for answers in by_text.values():
        if len(answers) < 2:
            continue  # it would be known from the question
        most = sorted(map(len, answers.values()))[(len(answers) - 1) // 2]
        lists = [[group[int(k)] for k in rng.permutation(len(group))[:most]] for group in answers.values()]
        rounds += [[group[turn] for group in lists if turn < len(group)] for turn in range(most)]
    return [rounds[int(k)] for k in rng.permutation(len(rounds))]


def _candidates(view: View, other: View, rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    """(family, question, answer) of what can be asked about ``view``."""
    for name in dict.fromkeys(str(rng.choice(item.names)) for item in (*view.items, *other.items)):
        yield "is there", f"is there a {name}?", _yes(view.shows(name))
    for ground in {view.ground: 0, other.ground: 0}:
        yield "is the background", f"is the {view.behind} {ground}?", _yes(view.ground == ground)
    yield "what background", f"what colour is the {view.behind}?", view.ground
    yield "how many things", f"how many {view.thing}s are there?", str(len(view.items))
    for noun in dict.fromkeys(item.noun for item in (*view.items, *other.items)):
        yield "how many", f"how many {plural(noun)} are there?", str(sum(item.noun == noun for item in view.items))
    named = [item for item in view.items if view.alone(item.noun)]
    for item in named:
        yield "where", f"where is the {item.noun}?", item.place.split("the ")[1]
        if item.colour:
            yield "what colour", f"what colour is the {item.noun}?", item.colour
    for item in view.items:
        yield "what is at", f"what is {item.place}?", item.noun
        if item.colour and sum(each.colour == item.colour for each in view.items) == 1:
            yield "what is of colour", f"what is {item.colour}?", item.noun
    if len(named) > 1:
        one, two = (named[int(k)] for k in rng.choice(len(named), 2, replace=False))
        relation = str(rng.choice(RELATIONS))
        yield "is it", f"is the {one.noun} {relation} the {two.noun}?", _yes(holds(one, relation, two))


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
