"""Every selector of conf/selector keeps the contract; a new one is tested the day it is added."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tldr.pairs import Pairs
from tldr.selector.base import Maker, Selection, Selector, Target, best, keep_count
from tldr.signal.store import Signals
from tldr.tasks.steps import named_steps

CONF = Path(__file__).parents[2] / "conf" / "selector"
COMPRESSIONS = (0.5, 0.75, 0.9)


def load(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file))


@pytest.fixture(params=sorted(path.stem for path in CONF.glob("*.yaml")))
def selector(request, target) -> Any:
    """The method of the YAML; where it wants a target, that of the fixture."""
    made = instantiate(named_steps(load(CONF / f"{request.param}.yaml"), CONF, load), _convert_="all")
    if isinstance(made, Maker):
        pytest.skip("it makes pairs: tests of its own")
    assert isinstance(made, Selector)
    return Aimed(made, target)


class Scribe:
    """Writes of each picture what its name says, in other words for another draw."""

    varies = True

    def write(self, pairs: Pairs, *, draw: int = 0) -> list[str]:
        return [f"a {('red', 'blue')[draw % 2]} disc on {image}" for image in pairs.images.to_pylist()]


class Aimed:
    def __init__(self, selector: Selector, target: Target) -> None:
        self.selector, self.needs, self.target = selector, selector.needs, target

    def __call__(self, pool: Pairs, signals: Signals | None, **options: Any) -> Selection:
        return self.selector(pool, signals, **options, target=self.target, writer=Scribe())


def kept(pool: Pairs, selection: Selection) -> list[str]:
    return pool.take(selection.rows).uids.to_pylist()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_exactly_as_many_as_asked_of_the_pool(selector, pool, signals, compression):
    keep = keep_count(len(pool), compression)
    selection = selector(pool, signals, keep=keep, seed=0)
    assert len(selection.rows) == len(set(kept(pool, selection))) == keep == round(300 * (1 - compression))
    assert np.array_equal(selection.rows, np.sort(selection.rows))
    assert set(kept(pool, selection)) <= set(pool.uids.to_pylist())


@pytest.mark.parametrize("keep", [1, 299, 300])
def test_the_extremes(selector, pool, signals, keep):
    assert len(selector(pool, signals, keep=keep, seed=0).rows) == keep


def test_a_merit_is_what_any_number_is_kept_by(selector, pool, signals):
    """So that intersect and union need not ask again for each number."""
    merit = selector(pool, signals, keep=75, seed=0).merit
    if merit is None:
        pytest.skip("it does not rank the pool")
    for keep in (1, 40, 150, 299):
        assert np.array_equal(selector(pool, signals, keep=keep, seed=0).rows, best(merit, keep)[0])


def test_deterministic_in_the_seed(selector, pool, signals):
    first = selector(pool, signals, keep=75, seed=3)
    np.random.seed(99)  # nobody should look at it
    again = selector(pool, signals, keep=75, seed=3)
    assert np.array_equal(again.rows, first.rows)
    assert again.reasons == first.reasons
    assert all(np.array_equal(again.scores[name], values) for name, values in first.scores.items())
    assert len(selector(pool, signals, keep=75, seed=4).rows) == 75


def test_the_order_of_the_pool_does_not_matter(selector, pool, shuffled, signals, values, store):
    """Signals belong to uids; in whatever order the pairs are found, the same are kept."""
    back = pool.rows_of(shuffled.uids.to_pylist())
    again = store({name: array[back] for name, array in values.items()})
    first = selector(pool, signals, keep=75, seed=0)
    assert kept(shuffled, selector(shuffled, again, keep=75, seed=0)) == kept(pool, first)
    mapped = Pairs.open(pool.write(again.folder.parent / "pool"))
    assert kept(mapped, selector(mapped, signals, keep=75, seed=0)) == kept(pool, first)


def test_a_reason_for_every_row(selector, pool, signals):
    selection = selector(pool, signals, keep=75, seed=0)
    assert len(selection.reasons) == 300
    assert all(isinstance(reason, str) and reason.strip() for reason in selection.reasons)


def test_decisions_tell_of_every_pair(selector, pool, signals, tmp_path):
    selection = selector(pool, signals, keep=75, seed=0)
    table = selection.decisions(pool)
    assert table.column_names[:4] == ["uid", "kept", "reason", "cluster"]
    assert set(table.column_names[4:]) == set(selection.scores) - {"cluster"}
    assert table["uid"].to_pylist() == pool.uids.to_pylist()
    assert np.array_equal(np.flatnonzero(table["kept"].to_numpy()), selection.rows)
    pq.write_table(table, tmp_path / "decisions.parquet")
    assert pq.read_table(tmp_path / "decisions.parquet").equals(table)


def test_the_truth_is_not_looked_at(selector, pool, signals):
    poisoned = pool.with_column("truth_mismatched", ~pool.column("truth_mismatched"))
    poisoned = poisoned.with_column("truth_keep", np.arange(300.0))
    one, other = (selector(each, signals, keep=75, seed=0) for each in (pool, poisoned))
    assert np.array_equal(one.rows, other.rows)
    assert one.reasons == other.reasons
    assert set(one.scores) == set(other.scores)


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused_with_their_uid(selector, pool, values, store, strange):
    numbers = [name for name in selector.needs if values[name].dtype.kind == "f"]
    if not numbers:
        pytest.skip("it asks for none")
    uid = pool.uids[7].as_py()
    for name in numbers:
        broken = values[name].copy()
        broken[[7, 250]] = strange
        # A later step of several is given but one of the two.
        with pytest.raises(ValueError, match=rf"is NaN or infinite for [12] pairs, such as {uid}"):
            selector(pool, store({**values, name: broken}), keep=75, seed=0)


def test_it_names_the_signals_it_needs(selector, pool, store, values):
    """No more than those are there, no fewer do."""
    only = {name: values[name] for name in selector.needs}
    if not any("." not in name for name in only):
        only["unread"] = np.zeros(300, np.float32)  # the main scorer has said something, too
    assert len(selector(pool, store(only), keep=75, seed=0).rows) == 75
    if not selector.needs:
        assert len(selector(pool, None, keep=75, seed=0).rows) == 75


def test_rows_that_failed_are_left_out(selector, pool, signals, values, store):
    """A narrowed pool with its narrowed signals is a pool."""
    rows = np.setdiff1d(np.arange(300), [0, 17, 299])
    smaller, view = pool.take(rows), signals.at(rows)
    assert isinstance(view, Signals)
    found = selector(smaller, view, keep=75, seed=0)
    again = store({name: array[rows] for name, array in values.items()})
    assert kept(smaller, found) == kept(smaller, selector(smaller, again, keep=75, seed=0))


@pytest.mark.parametrize("keep", [0, -1, 301])
def test_an_impossible_number_is_refused(selector, pool, signals, keep):
    with pytest.raises(ValueError, match=rf"cannot keep {keep} of 300 pairs"):
        selector(pool, signals, keep=keep, seed=0)
