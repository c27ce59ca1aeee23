"""Statements about two pictures, true of some pairs and false of others: what NLVR2 (https://arxiv.org/abs/1811.00491)
asks of a model, over rendered scenes.

A statement comes with four pairs of pictures, two of which it is true of: a model that reads the sentence alone is
right half of the time, and one that understands it is right four times in a row (`consistency`). Half of the pictures
are drawn from those that show what is spoken of, so that pairs are near misses as often as not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tldr.data.view import NUMBERS, RELATIONS, View, articled, holds

PAIRS = 4  # to a statement, half of them true
_ATTEMPTS = 100


@dataclass(frozen=True)
class Statement:
    """A sentence, what decides it, and the names that pictures worth drawing show."""

    text: str
    true_of: Callable[[View, View], bool]
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A statement about the pictures number ``left`` and ``right``; those of one ``group`` share the sentence."""

    group: int
    text: str
    left: int
    right: int
    label: bool


def judged(views: Sequence[View], count: int, rng: np.random.Generator) -> list[Judged]:
    """``count`` judged pairs of the pictures: groups of four, two true and two false, the last cut where it must be."""
    showing: dict[str, list[int]] = defaultdict(list)
    for number, view in enumerate(views):
        for name in {*(name for item in view.items for name in item.names), view.ground}:
            showing[name].append(number)
    found: list[Judged] = []
    group = 0
    while len(found) < count:
        statement = _statement(views[int(rng.integers(len(views)))], rng)
        pairs: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for _ in range(_ATTEMPTS):
            left, right = (_picture(statement, showing, len(views), rng) for _ in range(2))
            side = pairs[statement.true_of(views[left], views[right])]
            if left != right and (left, right) not in side and len(side) < PAIRS // 2:
                side.append((left, right))
            if sum(map(len, pairs.values())) == PAIRS:
                for yes, no in zip(pairs[True], pairs[False], strict=True):
                    found += [Judged(group, statement.text, *yes, True), Judged(group, statement.text, *no, False)]
                group += 1
                break
    return found[:count]


def _picture(statement: Statement, showing: dict[str, list[int]], count: int, rng: np.random.Generator) -> int:
    if statement.about and rng.random() < 0.5:
        among = showing[statement.about[int(rng.integers(len(statement.about)))]]
        return among[int(rng.integers(len(among)))]
    return int(rng.integers(count))


def _statement(view: View, rng: np.random.Generator) -> Statement:
    """One of any kind, about what ``view`` shows."""
    kind = _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))]
    statement = kind(view, rng)
    text = statement.text if rng.random() < 0.5 else statement.text.replace("picture", "image")
    return Statement(articled(text), statement.true_of, statement.about)


def _name(view: View, rng: np.random.Generator) -> str:
    item = view.items[int(rng.integers(len(view.items)))]
    return item.names[int(rng.integers(len(item.names)))]


def _side(rng: np.random.Generator) -> tuple[str, str, Callable[[View, View], tuple[View, View]]]:
    """A side, the other one, and what puts its picture first."""
    if rng.random() < 0.5:
        return "left", "right", lambda left, right: (left, right)
    return "right", "left", lambda left, right: (right, left)


def _shown(view: View, rng: np.random.Generator) -> Statement:
    name = _name(view, rng)
    texts: list[tuple[str, Callable[[View, View], bool]]] = [
        (f"both pictures show a {name}", lambda a, b: a.shows(name) and b.shows(name)),
        (f"there is a {name} in each picture", lambda a, b: a.shows(name) and b.shows(name)),
        (f"one picture shows a {name} and the other does not", lambda a, b: a.shows(name) != b.shows(name)),
        (f"only one of the pictures shows a {name}", lambda a, b: a.shows(name) != b.shows(name)),
        (f"at least one picture shows a {name}", lambda a, b: a.shows(name) or b.shows(name)),
        (f"neither picture shows a {name}", lambda a, b: not a.shows(name) and not b.shows(name)),
    ]
    return Statement(*texts[int(rng.integers(len(texts)))], about=(name,))


def _on_one_side(view: View, rng: np.random.Generator) -> Statement:
    name, (side, _, first) = _name(view, rng), _side(rng)
    text = f"the {side} picture shows a {name}" if rng.random() < 0.5 else f"there is a {name} in the {side} picture"
    return Statement(text, lambda a, b: first(a, b)[0].shows(name), (name,))


def _on_both_sides(view: View, rng: np.random.Generator) -> Statement:
    one, two = _name(view, rng), _name(view, rng)
    text = f"the left picture shows a {one} and the right one a {two}"
    return Statement(text, lambda a, b: a.shows(one) and b.shows(two), (one, two))


def _at_a_place(view: View, rng: np.random.Generator) -> Statement:
    item, (side, _, first) = view.items[int(rng.integers(len(view.items)))], _side(rng)
    return Statement(
        f"the {side} picture shows a {item.noun} {item.place}",
        lambda a, b: any((i.noun, i.place) == (item.noun, item.place) for i in first(a, b)[0].items),
        (item.noun,),
    )


def _in_relation(view: View, rng: np.random.Generator) -> Statement:
    one, two = (view.items[int(k)] for k in rng.choice(len(view.items), 2, replace=False))
    relation = str(rng.choice([each for each in RELATIONS if holds(one, each, two)]))
    side, _, first = _side(rng)
    return Statement(
        f"in the {side} picture a {one.noun} is {relation} a {two.noun}",
        lambda a, b: any(
            i.noun == one.noun and j.noun == two.noun and holds(i, relation, j)
            for i in first(a, b)[0].items
            for j in first(a, b)[0].items
        ),
        (one.noun, two.noun),
    )


def _counted(view: View, rng: np.random.Generator) -> Statement:
    things, (side, other, first) = f"{view.thing}s", _side(rng)
    total = 2 * len(view.items) + int(rng.integers(-1, 2))
    texts: list[tuple[str, Callable[[View, View], bool]]] = [
        (
            f"the {side} picture has more {things} than the {other} one",
            lambda a, b: len(first(a, b)[0].items) > len(first(a, b)[1].items),
        ),
        (f"both pictures have the same number of {things}", lambda a, b: len(a.items) == len(b.items)),
        (
            f"there are {NUMBERS[total]} {things} in the two pictures together",
            lambda a, b: len(a.items) + len(b.items) == total,
        ),
    ]
    return Statement(*texts[int(rng.choice(3, p=[0.5, 0.2, 0.3]))])


def _behind(view: View, rng: np.random.Generator) -> Statement:
    ground, (side, _, first) = view.ground, _side(rng)
    texts: list[tuple[str, Callable[[View, View], bool]]] = [
        (f"the {side} picture has a {ground} {view.behind}", lambda a, b: first(a, b)[0].ground == ground),
        (f"both pictures have a {ground} {view.behind}", lambda a, b: a.ground == ground == b.ground),
        (f"the two pictures have the same {view.behind}", lambda a, b: a.ground == b.ground),
    ]
    return Statement(*texts[int(rng.choice(3, p=[0.5, 0.3, 0.2]))], about=(ground,))


_KINDS = (_shown, _on_one_side, _on_both_sides, _at_a_place, _in_relation, _counted, _behind)
_SHARES = (0.3, 0.15, 0.1, 0.1, 0.05, 0.15, 0.15)
