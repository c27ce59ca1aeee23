"""A scene as sentences speak of it: a background and some items, each with a noun, perhaps a colour, and a place.

`tldr.data.statements` and `tldr.data.questions` are made of these alone, so that they serve every world of scenes."""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Item:
    """One object. ``row`` and ``column`` count from the top left; ``place`` is a phrase, ``at the top left``."""

    noun: str
    colour: str  # empty where it has none that one would name
    row: int
    column: int
    place: str

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called: ``circle``, ``red circle``."""
        return (self.noun, f"{self.colour} {self.noun}") if self.colour else (self.noun,)


@dataclass(frozen=True)
class View:
    """What a picture shows. ``thing`` is the word for any of its items, ``behind`` that for what is behind them."""

    ground: str  # the colour of the background
    items: tuple[Item, ...]
    thing: str
    behind: str

    def shows(self, name: str) -> bool:
        """Whether one of the items may be called that."""
        return any(name in item.names for item in self.items)

    def alone(self, noun: str) -> bool:
        """Whether ``the <noun>`` names exactly one item."""
        return sum(item.noun == noun for item in self.items) == 1


def articled(text: str) -> str:
    """``a`` before a vowel made ``an``."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def plural(noun: str) -> str:
    """More than one of it."""
    return {"deer": "deer", "cross": "crosses"}.get(noun, f"{noun}s")


def holds(one: Item, relation: str, two: Item) -> bool:
    """Whether ``one`` lies ``above``, ``below``, ``to the left of`` or ``to the right of`` the other."""
    return {
        "above": one.row < two.row,
        "below": one.row > two.row,
        "to the left of": one.column < two.column,
        "to the right of": one.column > two.column,
    }[relation]


RELATIONS = ("above", "below", "to the left of", "to the right of")
