import numpy as np
import pytest

from tldr.selector.base import Maker, Selection, Selector, best
from tldr.selector.chain import Chain, counts
from tldr.selector.data_pruning import DataPruning
from tldr.selector.random import Random
from tldr.selector.tldr import TLDR


class Top(Selector):
    """The highest of one signal."""

    def __init__(self, signal: str = "clip.alignment") -> None:
        self.needs = (signal,)

    def choose(self, pool, signals, *, keep, seed) -> Selection:
        assert signals is not None
        score = signals[self.needs[0]].read().astype(np.float32)
        rows, cut = best(score, keep)
        return Selection(rows, [f"{s:.3g}, cut at {cut:.3g}" for s in score], {"score": score})


class Near(Top):
    """For a target set."""

    needs_target = True

    def choose(self, pool, signals, *, keep, seed, target=None) -> Selection:
        assert target is not None
        assert len(target.pairs) == 60
        return super().choose(pool, signals, keep=keep, seed=seed)


class Paint(Maker):
    def make(self, pool, signals, *, keep, seed, folder):
        raise AssertionError("nobody asks")


CLIP, BLIP = Top("clip.alignment"), Top("blip.alignment")


# ------------------------------------------------------------------------------------------------ how many


@pytest.mark.parametrize(("total", "keep"), [(300, 75), (300, 1), (300, 299), (300, 300), (1, 1)])
def test_by_default_all_steps_keep_the_same_share(total, keep):
    left = counts(total, keep, 3, None)
    assert left[-1] == keep
    assert all(a >= b for a, b in zip([total, *left], left, strict=False))
    assert left[:2] == [round(total * (keep / total) ** (k / 3)) for k in (1, 2)]


def test_shares_are_of_what_a_step_is_given():
    assert counts(300, 60, 3, [0.8, 0.5]) == [240, 120, 60]
    with pytest.raises(ValueError, match=r"selector\.shares=\[0\.2\] leaves the last step 60 of 300 pairs"):
        counts(300, 75, 2, [0.2])


# ------------------------------------------------------------------------------------------------ one after the other


def test_each_step_reduces_what_the_one_before_kept(pool, signals, values):
    selection = Chain(steps=[CLIP, BLIP], names=["clip", "blip"], shares=[0.5])(pool, signals, keep=50, seed=0)
    first = np.sort(np.argsort(-values["clip.alignment"], kind="stable")[:150])
    expected = first[np.argsort(-values["blip.alignment"][first], kind="stable")[:50]]
    assert np.array_equal(selection.rows, np.sort(expected))
    by_clip = np.setdiff1d(np.arange(300), first)
    assert all(selection.reasons[row].startswith("clip: ") for row in by_clip)
    assert all(selection.reasons[row].startswith("blip: ") for row in first)
    row = int(by_clip[0])
    cut = np.sort(values["clip.alignment"])[-150]
    assert selection.reasons[row] == f"clip: {values['clip.alignment'][row]:.3g}, cut at {cut:.3g}"


def test_scores_are_of_the_steps_that_saw_every_pair(pool, signals, values):
    selection = Chain(steps=[CLIP, BLIP], names=["clip", "blip"])(pool, signals, keep=50, seed=0)
    assert set(selection.scores) == {"clip.score"}
    assert np.array_equal(selection.scores["clip.score"], values["clip.alignment"])
    whole = Chain(steps=[CLIP, BLIP], names=["clip", "blip"], shares=[1.0])(pool, signals, keep=50, seed=0)
    assert set(whole.scores) == {"clip.score", "blip.score"}


def test_the_cluster_is_that_of_the_first_step_that_has_one(pool, signals):
    selection = Chain(steps=[CLIP, TLDR()])(pool, signals, keep=50, seed=0)
    seen = np.argsort(-selection.scores["test_chain.score"], kind="stable")[: counts(300, 50, 2, None)[0]]
    assert (selection.scores["cluster"][seen] >= 0).all()
    assert (np.delete(selection.scores["cluster"], seen) == -1).all()
    assert selection.decisions(pool)["cluster"].to_pylist() == selection.scores["cluster"].tolist()


def test_one_step_is_that_step(pool, signals):
    alone, chained = (s(pool, signals, keep=75, seed=2) for s in (TLDR(), Chain(steps=[TLDR()])))
    assert np.array_equal(alone.rows, chained.rows)
    assert chained.reasons == [f"tldr: {reason}" for reason in alone.reasons]


def test_chains_nest(pool, signals):
    selection = Chain(steps=[Chain(steps=[CLIP, BLIP], names=["a", "b"]), Random()])(pool, signals, keep=20, seed=0)
    assert {reason.split(": ")[0] for reason in selection.reasons} == {"chain", "random"}
    assert any(reason.startswith("chain: a: ") for reason in selection.reasons)


def test_without_signals_where_no_step_needs_any(pool):
    assert len(Chain(steps=[Random(), Random()])(pool, None, keep=20, seed=0).rows) == 20


# ------------------------------------------------------------------------------------------------ what steps need


def test_it_needs_what_its_steps_need(pool, signals, target):
    chain = Chain(steps=[CLIP, TLDR(), Top(), Near("blip.alignment")])
    assert chain.needs == ("clip.alignment", "codes", "alignment", "blip.alignment")
    assert chain.needs_target
    assert not Chain(steps=[CLIP]).needs_target
    assert chain.target_needs == ("blip.alignment",)  # the others look at the pool alone
    assert Chain(steps=[CLIP]).target_needs == ()
    assert len(chain(pool, signals, keep=20, seed=0, target=target).rows) == 20


def test_a_scorer_is_the_same_for_all_steps():
    el2n, grand = (DataPruning(score=score, labels="label") for score in ("el2n", "grand"))
    assert Chain(steps=[el2n, CLIP, grand]).scorer_options == {"classifier": {"column": "label"}}
    other = DataPruning(score="grand", labels="colour")
    with pytest.raises(ValueError, match="scorer classifier cannot have column=label for one and colour for another"):
        Chain(steps=[el2n, Chain(steps=[other])])


def test_one_target_serves_all_steps(pool):
    inner = Near()
    with pytest.raises(ValueError, match=r"\+data@selector\.target="):
        Chain(steps=[CLIP, Chain(steps=[inner])]).check(pool)
    Chain(steps=[CLIP, Chain(steps=[inner])], target=(reader := object())).check(pool)
    assert inner.target is reader
    with pytest.raises(ValueError, match=r"one target set serves all steps; name it as selector\.target"):
        Chain(steps=[inner])


def test_all_steps_compute_on_one_device(pool):
    inner = CLIP, Top()
    chain = Chain(steps=[inner[0], Chain(steps=[inner[1]])])
    chain.device = "cuda:1"
    chain.check(pool)
    assert [step.device for step in inner] == ["cuda:1", "cuda:1"]


def test_steps_are_checked(pool):
    class Labelled(Top):
        def check(self, pool):
            super().check(pool)
            raise ValueError("no labels: name their column")

    with pytest.raises(ValueError, match="no labels"):
        Chain(steps=[CLIP, Labelled()]).check(pool)


def test_the_same_step_twice_has_two_names(pool, signals):
    assert list(Chain(steps=[Random(), TLDR(), Random()]).steps) == ["random", "tldr", "random_2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": []}, r"selector\.steps=\[\] is empty"),
        ({"steps": [Paint(), CLIP]}, r"selector\.steps: Paint makes pairs, and cannot be one of several steps"),
        ({"steps": ["tldr"]}, r"selector\.steps has 'tldr'; it takes names"),
        ({"steps": [CLIP], "names": ["a", "b"]}, r"selector\.names has 2 names for 1 steps"),
        ({"steps": [CLIP, BLIP], "shares": []}, r"selector\.shares=\[\]: 2 steps take 1 shares"),
        ({"steps": [CLIP, BLIP], "shares": [1.5]}, r"selector\.shares=\[1\.5\]: 2 steps take 1 shares inside"),
        ({"steps": [CLIP, BLIP], "shares": 0.75}, r"selector\.shares=0\.75: 2 steps take 1 shares"),
        ({"steps": [CLIP, BLIP], "shares": ["half"]}, r"selector\.shares=\['half'\]: 2 steps take 1 shares"),
        ({"steps": [CLIP, BLIP], "shares": [0]}, r"inside \(0, 1\]"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        Chain(**options)
