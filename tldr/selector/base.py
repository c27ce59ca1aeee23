"""What a selector is: it keeps exactly ``keep`` pairs of a pool, and gives a reason for every pair, kept or dropped.

It is deterministic in ``seed`` and, the pool being canonical, independent of the order in which the pairs were found.
It sees no ``truth_`` column. A `Maker` has the same interface, but makes new pairs (dataset distillation).

Shapes: N pairs of the pool, n = keep.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tldr.check import is_number
from tldr.pairs import Pairs
from tldr.signal.store import Signals


def at_least(low: float, /, **options: float) -> None:
    """Raises ValueError naming the first of a selector's ``options`` that is below ``low``."""
    for name, value in options.items():
        if not is_number(value) or not float(value) >= low:
            raise ValueError(f"selector.{name}={value!r} must be at least {low:g}")


def counts(low: int, /, **options: int) -> None:
    """Raises ValueError naming the first of a selector's ``options`` that is not a whole number, or is below
    ``low``."""
    for name, value in options.items():
        if not is_number(value, whole=True):
            raise ValueError(f"selector.{name}={value!r} must be a whole number")
    at_least(low, **options)


def above_zero(**options: float) -> None:
    """Raises ValueError naming the first of a selector's ``options`` that is not a finite number above 0."""
    for name, value in options.items():
        if not is_number(value) or not 0 < float(value) < math.inf:
            raise ValueError(f"selector.{name}={value!r} must be above 0, and finite")


def inside(meaning: str, /, *, low: float = 0.0, high: float = 1.0, above: bool = False, **options: float) -> None:
    """Raises ValueError, giving its ``meaning``, for the first of a selector's ``options`` that is not a number from
    ``low`` (with ``above``: above ``low``) to ``high``."""
    for name, value in options.items():
        if not is_number(value) or not low <= float(value) <= high or (above and value == low):
            raise ValueError(f"selector.{name}={value!r}: {meaning}, inside {'(' if above else '['}{low:g}, {high:g}]")


def one_of(choices: Iterable[str], **options: str) -> None:
    """Raises ValueError naming the first of a selector's ``options`` that is not one of ``choices``."""
    known = tuple(choices)
    for name, value in options.items():
        if value not in known:
            raise ValueError(f"selector.{name}={value!r}; choose from {', '.join(known)}")


@dataclass(frozen=True)
class Selection:
    """The kept ``rows`` (n,) of the pool, sorted; N ``reasons``, in words; and the ``scores`` behind them, each (N,),
    such as ``cluster`` and ``alignment``. ``merit`` (N,), for methods that rank the pool: however many pairs are to be
    kept, they are the `best` by ``merit``."""

    rows: np.ndarray
    reasons: list[str]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    merit: np.ndarray | None = None

    def decisions(self, pool: Pairs) -> pa.Table:
        """One row for every pair of the pool: uid, kept, reason, cluster (-1: none), scores."""
        kept = np.zeros(len(pool), bool)
        kept[self.rows] = True
        cluster = self.scores.get("cluster", np.full(len(pool), -1))
        columns = {"uid": pool.uids, "kept": kept, "reason": self.reasons, "cluster": np.asarray(cluster, np.int64)}
        return pa.table({**columns, **{name: v for name, v in self.scores.items() if name != "cluster"}})


@dataclass(frozen=True)
class Target:
    """What the reduced data are wanted for: its ``pairs``, and their ``signals`` by the models that scored the pool."""

    pairs: Pairs
    signals: Signals | None


class Method:
    """What selectors and makers share. ``needs``: the signals they read (``alignment`` of the scorer that ``model=``
    names, ``clip.embedding`` of the one called ``clip``). ``target``: a `tldr.data.base.Reader` of the target set, for
    methods with ``needs_target``. ``scorer_options``: arguments that scorers must be built with, by scorer name:
    ``{"classifier": {"column": "label"}}``. Heavy computation runs on ``device``, the task's ``device=``."""

    needs: tuple[str, ...] = ()
    needs_target: bool = False
    scorer_options: Mapping[str, Mapping[str, Any]] = {}
    needs_writer: bool = False  # of captions: the main scorer, as refiners use it
    target: Any = None
    device: str = "cpu"

    @property
    def target_needs(self) -> tuple[str, ...]:
        """The signals that it needs of the target set."""
        return self.needs if self.needs_target else ()

    def check(self, pool: Pairs) -> None:
        """Before any signal is computed: raises ValueError, naming the override to add, where ``pool`` or the
        configuration lacks what the method needs (a target set, labels)."""
        if self.needs_target and (self.target is None or isinstance(self.target, str)):
            told = "" if self.target is None else f"selector.target={self.target} is only a name: "
            raise ValueError(
                f"{told}{type(self).__name__} needs a target set; give its data: +data@selector.target=flickr8k "
                "selector.target.root=..."
            )

    def _given(self, pool: Pairs, keep: int, target: Target | None, writer: Any) -> dict[str, Any]:
        """What `choose` or `make` is given beyond pool and signals."""
        if not 0 < keep <= len(pool):
            raise ValueError(f"cannot keep {keep} of {len(pool)} pairs; choose compression inside (0, 1)")
        given = {"target": target} if self.needs_target else {}
        given |= {"writer": writer} if self.needs_writer else {}
        assert None not in given.values(), "whoever calls it reads the target set and has a writer"
        return given


class Selector(Method, ABC):
    """A subclass defines `choose`, with a further argument ``target: Target`` if it ``needs_target``, and ``writer:
    tldr.refiner.base.Writer`` if it ``needs_writer``."""

    def __call__(
        self,
        pool: Pairs,
        signals: Signals | None,
        *,
        keep: int,
        seed: int,
        target: Target | None = None,
        writer: Any = None,
    ) -> Selection:
        """Keep ``keep`` pairs of ``pool``. Raises ValueError for an impossible ``keep``, or scores that are not
        finite."""
        given = self._given(pool, keep, target, writer)
        with np.errstate(invalid="ignore"):  # what is not finite is refused below, by its uid
            selection = self.choose(pool.without_truth(), signals, keep=keep, seed=seed, **given)
        for name, values in selection.scores.items():
            pool.refuse_infinite(name, np.isfinite(values))
        assert len(selection.rows) == keep == len(np.unique(selection.rows)), "a selector must keep exactly `keep` rows"
        assert len(selection.reasons) == len(pool), "a selector must give a reason for every row"
        return selection

    def most(self, total: int) -> int:
        """How many of ``total`` pairs it can be asked to keep."""
        return total

    @abstractmethod
    def choose(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int) -> Selection:
        """The method itself."""


@dataclass(frozen=True)
class Made:
    """New ``pairs``, whose pictures are in the folder that was given, and for each of the N pairs of the pool, in
    words, what it gave to them."""

    pairs: Pairs
    reasons: list[str]


class Maker(Method, ABC):
    """A subclass defines `make`: as many new pairs as are asked for."""

    def __call__(
        self,
        pool: Pairs,
        signals: Signals | None,
        *,
        keep: int,
        seed: int,
        folder: Path,
        target: Target | None = None,
        writer: Any = None,
    ) -> Made:
        """Make ``keep`` pairs from ``pool``; their pictures are written into ``folder``."""
        given = self._given(pool, keep, target, writer)
        made = self.make(pool.without_truth(), signals, keep=keep, seed=seed, folder=folder, **given)
        assert len(made.pairs) == keep, "a maker must make exactly `keep` pairs"
        assert len(made.reasons) == len(pool), "a maker must give a reason for every row"
        return made

    @abstractmethod
    def make(self, pool: Pairs, signals: Signals | None, *, keep: int, seed: int, folder: Path) -> Made:
        """The method itself."""


class Combination(Selector, ABC):
    """A selector made of others, the ``steps`` (at least one). It needs what they need. ``names`` are what reasons and
    scores call the steps; by default, the names of their files. One ``target`` serves all of them. Raises ValueError
    for steps that make pairs, that have a target set of their own, or that need one scorer with different options."""

    def __init__(self, *, steps: Sequence[Selector], names: Sequence[str] | None = None, target: Any = None) -> None:
        for step in steps:
            if isinstance(step, Maker):
                raise ValueError(
                    f"selector.steps: {type(step).__name__} makes pairs, and cannot be one of several steps"
                )
            if not isinstance(step, Selector):
                raise ValueError(f"selector.steps has {step!r}; it takes names of selectors: [semdedup,clip_score]")
            if step.target is not None:
                raise ValueError("selector.steps: one target set serves all steps; name it as selector.target")
        if not steps:
            raise ValueError("selector.steps=[] is empty; name selectors: [semdedup,clip_score]")
        names = names or [type(step).__module__.rpartition(".")[2] for step in steps]
        if len(names) != len(steps):
            raise ValueError(f"selector.names has {len(names)} names for {len(steps)} steps")
        numbers = [names[:i].count(name) + 1 for i, name in enumerate(names)]
        called = [name if number == 1 else f"{name}_{number}" for name, number in zip(names, numbers, strict=True)]
        self.steps: dict[str, Selector] = dict(zip(called, steps, strict=True))
        self.needs = tuple(dict.fromkeys(name for step in steps for name in step.needs))
        self.scorer_options = _merged(step.scorer_options for step in steps)
        self.needs_target = any(step.needs_target for step in steps)
        self.needs_writer = any(step.needs_writer for step in steps)
        self.target = target

    @property
    def target_needs(self) -> tuple[str, ...]:
        """Of those steps alone that look at the target set."""
        return tuple(dict.fromkeys(name for step in self.steps.values() for name in step.target_needs))

    def check(self, pool: Pairs) -> None:
        """What every step asks, of the common target set; all use one device."""
        super().check(pool)
        for step in self.steps.values():
            step.device = self.device
            if step.needs_target:
                step.target = self.target
            step.check(pool)


def _merged(asked: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The options of every scorer that any step asks for."""
    merged: dict[str, dict[str, Any]] = {}
    for options in asked:
        for scorer, own in options.items():
            for key, value in own.items():
                had = merged.setdefault(scorer, {}).setdefault(key, value)
                if had != value:
                    raise ValueError(
                        f"selector.steps: the scorer {scorer} cannot have {key}={had} for one and {value} for another"
                    )
    return merged


def best(score: np.ndarray, keep: int) -> tuple[np.ndarray, float]:
    """The sorted rows (keep,) of the highest ``score`` (N,), ties in the order of the rows, and the lowest among
    them."""
    order = ranked(score)
    return np.sort(order[:keep]), float(score[order[keep - 1]])


def ranked(score: np.ndarray) -> np.ndarray:
    """The rows (N,) in the order of their ``score``, the highest first, ties in the order of the rows."""
    return np.argsort(-score, kind="stable")


def check_compression(compression: float) -> None:
    """Raises ValueError for what is no share."""
    if not isinstance(compression, int | float) or not 0 < compression < 1:
        raise ValueError(f"compression={compression!r}: it is the share removed, inside (0, 1); 0.75 keeps a quarter")


def keep_count(total: int, compression: float) -> int:
    """How many of ``total`` pairs remain when the share ``compression`` is removed."""
    check_compression(compression)
    keep = round(total * (1 - compression))
    if not keep:
        raise ValueError(f"compression={compression} leaves none of {total} pairs; lower it")
    return keep
