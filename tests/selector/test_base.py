from typing import Any

import numpy as np
import pytest

from tldr.selector.base import Selection, Selector, at_least, inside, keep_count


class Given(Selector):
    """Selects what it is told, and remembers what it saw."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.seen: list[str] = []

    def choose(self, pool, signals, *, keep, seed):
        self.seen = pool.table.column_names
        return self.selection


def reasons(count: int = 300) -> list[str]:
    return ["because"] * count


@pytest.mark.parametrize(
    ("total", "compression", "keep"), [(3525, 0.75, 881), (100, 0.5, 50), (10, 0.9, 1), (3, 0.4, 2)]
)
def test_compression_is_the_share_removed(total, compression, keep):
    assert keep_count(total, compression) == keep


@pytest.mark.parametrize("compression", [0, 1, -1, 2, 1.0, 0.0, float("nan")])
def test_shares_that_remove_all_or_nothing_are_refused(compression):
    with pytest.raises(ValueError, match=rf"compression={compression}: it is the share removed, inside \(0, 1\)"):
        keep_count(100, compression)


def test_a_share_that_leaves_none_is_refused():
    with pytest.raises(ValueError, match=r"compression=0\.99 leaves none of 10 pairs; lower it"):
        keep_count(10, 0.99)


def test_a_selector_never_sees_the_truth(pool):
    selector = Given(Selection(np.arange(5), reasons()))
    selector(pool, None, keep=5, seed=0)
    assert selector.seen == ["uid", "image", "caption", "label"]


@pytest.mark.parametrize(
    "selection",
    [
        Selection(np.arange(4), reasons()),
        Selection(np.arange(6), reasons()),
        Selection(np.array([1, 1, 2, 3, 4]), reasons()),
        Selection(np.arange(5), reasons(299)),
    ],
    ids=["too few", "too many", "twice", "a row without reason"],
)
def test_what_breaks_the_contract_does_not_pass(pool, selection):
    with pytest.raises(AssertionError, match="a selector must"):
        Given(selection)(pool, None, keep=5, seed=0)


def test_scores_that_are_no_numbers_name_their_pairs(pool):
    score = np.ones(300, np.float32)
    score[[3, 8]] = np.nan, -np.inf
    message = rf"merit is NaN or infinite for 2 pairs, such as {pool.uids[3]}, {pool.uids[8]}"
    with pytest.raises(ValueError, match=message):
        Given(Selection(np.arange(5), reasons(), {"merit": score}))(pool, None, keep=5, seed=0)


def test_decisions_without_and_with_scores(pool):
    plain = Selection(np.array([2, 5]), reasons()).decisions(pool)
    assert plain.column_names == ["uid", "kept", "reason", "cluster"]
    assert set(plain["cluster"].to_pylist()) == {-1}
    assert plain.filter(plain["kept"])["uid"].to_pylist() == [pool.uids[2].as_py(), pool.uids[5].as_py()]
    scores = {"merit": np.linspace(0, 1, 300, dtype=np.float32), "cluster": np.arange(300) % 7}
    scored = Selection(np.array([2, 5]), reasons(), scores).decisions(pool)
    assert scored.column_names == ["uid", "kept", "reason", "cluster", "merit"]
    assert scored["cluster"].to_pylist() == (np.arange(300) % 7).tolist()
    assert scored["merit"].to_pylist() == pytest.approx(scores["merit"].tolist())


def test_options_are_numbers_of_any_library():
    right: Any
    wrong: Any
    for right in (np.int64(5), np.float32(2)):
        at_least(1, clusters=right)
    for wrong in ("abc", 0, float("nan"), None, True):
        with pytest.raises(ValueError, match=f"selector.clusters={wrong!r} must be at least 1"):
            at_least(1, clusters=wrong)


def test_shares_lie_inside_their_bounds():
    for right in (0, 0.5, 1):
        inside("a share", floor=right)
    for wrong in (-0.1, 1.1, float("nan"), "half", True, None):
        with pytest.raises(ValueError, match=rf"selector\.floor={wrong!r}: a share, inside \[0, 1\]"):
            inside("a share", floor=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"selector\.dedup=0: a share, inside \(0, 1\]"):
        inside("a share", above=True, dedup=0)
