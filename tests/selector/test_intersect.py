from dataclasses import replace

import numpy as np
import pytest

from tldr.selector.base import Selection, Selector, best
from tldr.selector.chain import Chain
from tldr.selector.intersect import Intersect, Union
from tldr.selector.random import Random
from tldr.selector.tldr import TLDR


class Top(Selector):
    """The highest of one signal; counts how often it is asked."""

    def __init__(self, signal: str) -> None:
        self.needs, self.asked = (signal,), 0

    def choose(self, pool, signals, *, keep, seed) -> Selection:
        self.asked += 1
        assert signals is not None
        score = signals[self.needs[0]].read().astype(np.float32)
        rows, cut = best(score, keep)
        return Selection(rows, [f"{s:.3g}, cut at {cut:.3g}" for s in score], {"score": score})


SIGNALS = ("clip.alignment", "blip.alignment", "alignment")


def tops(number: int = 2) -> dict:
    return {"steps": [Top(name) for name in SIGNALS[:number]], "names": ["clip", "blip", "vlm"][:number]}


def places(values, number: int) -> np.ndarray:
    """(S, N): the place of every pair by every score."""
    return np.stack([np.argsort(np.argsort(-values[name], kind="stable")) for name in SIGNALS[:number]])


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("keep", [1, 40, 75, 150, 299, 300])
@pytest.mark.parametrize(("kind", "reach"), [(Intersect, np.max), (Union, np.min)])
def test_the_smallest_number_at_which_enough_are_found(pool, signals, values, keep, number, kind, reach):
    """Directly: the m at which a pair is found is its worst (or best) place by the scores."""
    selection = kind(**tops(number))(pool, signals, keep=keep, seed=0)
    needed = reach(places(values, number), axis=0)
    expected = np.lexsort((np.arange(300), needed))[:keep]  # of those that come in together, the first by uid
    assert np.array_equal(selection.rows, np.sort(expected))
    assert f"among the best {needed[expected[-1]] + 1} of " in selection.reasons[0]


class Telling(Top):
    """Has something to say of the pool."""

    def choose(self, pool, signals, *, keep, seed) -> Selection:
        print("there are few")
        return super().choose(pool, signals, keep=keep, seed=seed)


def test_a_step_is_heard_once(pool, signals, capsys):
    Union(steps=[Telling(name) for name in SIGNALS[:2]])(pool, signals, keep=75, seed=0)
    assert capsys.readouterr().out == "there are few\n" * 2


class Ranking(Top):
    """Says what it ranks by."""

    def choose(self, pool, signals, *, keep, seed) -> Selection:
        told = super().choose(pool, signals, keep=keep, seed=seed)
        return replace(told, merit=told.scores["score"])


@pytest.mark.parametrize("keep", [1, 40, 75, 299])
@pytest.mark.parametrize("kind", [Intersect, Union])
def test_bisection_asks_a_step_few_times_and_one_that_ranks_twice(pool, signals, kind, keep):
    made = tops()
    asking = kind(**made)(pool, signals, keep=keep, seed=0)
    assert all(step.asked <= 10 for step in made["steps"])  # log2(300) is 8.2
    ranking = [Ranking(name) for name in SIGNALS[:2]]
    both = kind(steps=ranking, names=made["names"])(pool, signals, keep=keep, seed=0)
    assert [step.asked <= 2 for step in ranking] == [True, True]
    mixed = kind(steps=[ranking[0], made["steps"][1]], names=made["names"])(pool, signals, keep=keep, seed=0)
    for other in (both, mixed):
        assert np.array_equal(other.rows, asking.rows)
        assert other.reasons == asking.reasons


def test_reasons_are_of_the_steps_that_decided(pool, signals, values):
    both = Intersect(**tops())(pool, signals, keep=75, seed=0)
    place = places(values, 2)
    depth = int(both.reasons[0].split("best ")[1].split()[0])
    for row in range(300):
        held = place[:, row] < depth
        reason = both.reasons[row]
        assert reason.startswith("among") == held.all() or reason.startswith("one of ")
        told = [f"of {name}: " in reason for name in ("clip", "blip")]
        assert told == ([True, True] if held.all() else [not have for have in held])
    cut = np.sort(values["clip.alignment"])[-depth]
    row = int(np.flatnonzero((place[0] >= depth) & (place[1] < depth))[0])
    expected = f"not among the best {depth} of clip: {values['clip.alignment'][row]:.3g}, cut at {cut:.3g}"
    assert both.reasons[row] == expected


def test_one_too_many_is_told(pool, signals, values):
    """Union's steps add two pairs at once: an odd number to keep leaves one out, and says so."""
    dropped = []
    for keep in range(40, 60):
        selection = Union(**tops())(pool, signals, keep=keep, seed=0)
        spare = [row for row, reason in enumerate(selection.reasons) if "too many, the last to come in" in reason]
        depth = int(selection.reasons[0].split("best ")[1].split()[0])
        found = (places(values, 2) < depth).any(0).sum()
        assert len(spare) == found - keep
        assert not set(spare) & set(selection.rows)
        dropped += spare
    assert dropped


def test_all_scores_are_there(pool, signals, values):
    for kind in (Intersect, Union):
        selection = kind(
            steps=[Top("clip.alignment"), TLDR(rows_per_cluster=30), TLDR(clusters=5, rows_per_cluster=30)],
            names=["clip", "tldr", "tldr"],
        )(pool, signals, keep=75, seed=0)
        assert np.array_equal(selection.scores["clip.score"], values["clip.alignment"])
        assert {"tldr.worth", "tldr_2.worth", "cluster"} < set(selection.scores)
        assert "tldr.cluster" not in selection.scores
        assert selection.scores["cluster"].max() > 5  # the first's


def test_a_chain_whose_shares_leave_little_is_not_asked_for_more(pool, signals, values):
    """Of 300 pairs its last step sees 150."""

    def steps() -> list[Selector]:
        return [Chain(steps=tops()["steps"], shares=[0.5]), Top("alignment")]

    chain = steps()[0](pool, signals, keep=150, seed=0)
    assert set(Intersect(steps=steps())(pool, signals, keep=40, seed=0).rows) <= set(chain.rows)
    assert len(Union(steps=steps())(pool, signals, keep=180, seed=0).rows) == 180
    with pytest.raises(ValueError, match=r"from 150 pairs of each, .* fewer than the 149 to keep; raise"):
        Intersect(steps=steps())(pool, signals, keep=149, seed=0)


def test_one_step_is_that_step(pool, signals):
    alone = TLDR()(pool, signals, keep=75, seed=1)
    for kind in (Intersect, Union):
        assert np.array_equal(kind(steps=[TLDR()])(pool, signals, keep=75, seed=1).rows, alone.rows)


def test_steps_that_are_not_nested_still_keep_exactly(pool, signals):
    """What a draw of 100 keeps, a draw of 101 need not."""

    class Draw(Selector):
        def choose(self, pool, signals, *, keep, seed) -> Selection:
            rows = np.sort(np.random.default_rng([seed, keep]).choice(len(pool), keep, replace=False))
            return Selection(rows, ["drawn"] * len(pool))

    for kind in (Intersect, Union):
        for keep in (1, 75, 299):
            assert len(kind(steps=[Draw(), Random()])(pool, None, keep=keep, seed=0).rows) == keep


def test_both_judges_keep_fewer_mismatched_than_either(pool, signals):
    wrong = pool.column("truth_mismatched")
    both, either = (wrong[kind(**tops())(pool, signals, keep=150, seed=0).rows].mean() for kind in (Intersect, Union))
    assert both < wrong.mean()
    assert either < wrong.mean()
