import os
import resource
from pathlib import Path

import numpy as np
import pytest

from tldr.pairs import Pairs
from tldr.signal import store
from tldr.signal.store import Signals

N = 100


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "codes": rng.integers(0, 65_536, (N, 5)).astype(np.uint16),
        "embedding": rng.standard_normal((N, 3)).astype(np.float16),
        "alignment": rng.standard_normal(N).astype(np.float32),
    }


@pytest.fixture(params=[7, 32, 100, 4096], ids=lambda rows: f"parts of {rows}")
def signals(request, tmp_path, values, monkeypatch) -> Signals:
    """All parts of a pool of a hundred."""
    monkeypatch.setattr(store, "PART_ROWS", request.param)
    return fill(Signals(tmp_path / "signals", N), values)


def fill(signals: Signals, values: dict[str, np.ndarray], errors=None) -> Signals:
    step = store.PART_ROWS
    for number in reversed(range(signals.parts)):  # in any order
        rows = slice(number * step, (number + 1) * step)
        arrays = {name: array[rows] for name, array in values.items()}
        signals.write_part(number, arrays, (errors or {}).get(number, {}))
    return signals


def test_what_was_written_is_read(signals, values):
    assert list(signals) == ["alignment", "codes", "embedding"]
    assert len(signals) == 3
    for name, array in values.items():
        signal = signals[name]
        assert (signal.shape, signal.dtype) == (array.shape, array.dtype)
        assert np.array_equal(signal.read(), array)
        assert np.array_equal(np.concatenate(list(signal.chunks())), array)


def test_chunks_are_the_parts_and_lie_on_disk(signals):
    chunks = list(signals["codes"].chunks())
    assert len(chunks) == signals.parts
    assert all(isinstance(chunk, np.memmap) for chunk in chunks)


@pytest.mark.parametrize("rows", [[], [0], [99], [3, 6, 7, 8, 31, 32, 33, 98], list(range(N)), list(range(40, 60))])
def test_some_rows(signals, values, rows):
    rows = np.array(rows, dtype=np.int64)
    for name, array in values.items():
        found = signals[name].read(rows)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array[rows])


@pytest.mark.parametrize("rows", [[99], [3, 6, 7, 8, 31, 32, 33, 98], list(range(0, N, 3)), list(range(50, N))])
def test_a_narrowed_view_is_a_pool_of_its_own(signals, values, rows):
    rows = np.array(rows)
    view = signals.at(rows)
    assert list(view) == list(signals)
    for name, array in values.items():
        assert view[name].shape == (len(rows), *array.shape[1:])
        assert np.array_equal(view[name].read(), array[rows])
        assert np.array_equal(np.concatenate(list(view[name].chunks())), array[rows])
        assert all(len(chunk) for chunk in view[name].chunks())  # a part none of whose rows are wanted is left out
        some = np.arange(0, len(rows), 2)
        assert np.array_equal(view[name].read(some), array[rows[some]])
        assert np.array_equal(view.at(some)[name].read(), array[rows[some]])


def test_nothing_is_left_of_a_view_of_nothing(signals, values):
    for name, array in values.items():
        found = signals.at(np.array([], np.int64))[name].read()
        assert (found.shape, found.dtype) == ((0, *array.shape[1:]), array.dtype)


def test_all_rows_are_read_with_few_files_open(tmp_path, values, monkeypatch):
    """A pool of 40M pairs has ten thousand parts, a process a thousand files."""
    monkeypatch.setattr(store, "PART_ROWS", 1)
    signals = fill(Signals(tmp_path, N), values)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(number) for number in os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        assert np.array_equal(signals["codes"].read(), values["codes"])
        assert np.array_equal(signals["codes"].read(np.arange(0, N, 3)), values["codes"][::3])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_values_that_are_no_numbers_name_their_pairs(signals):
    columns = {"uid": [f"u{i:02}" for i in range(N)], "image": ["a.png"] * N, "caption": ["a"] * N}
    pool = Pairs.build(columns, root="")
    signals.refuse_infinite("codes", pool)
    signals.refuse_infinite("embedding", pool)
    for rows in (np.arange(N), np.arange(1, N, 2)):
        view = fill(Signals(signals.folder.parent / f"strange-{len(rows)}", N), strange(N, at=[11, 73])).at(rows)
        with pytest.raises(ValueError, match="embedding is NaN or infinite for 2 pairs, such as u11, u73"):
            view.refuse_infinite("embedding", pool.take(rows))


def strange(count: int, at: list[int]) -> dict[str, np.ndarray]:
    embedding = np.ones((count, 3), np.float16)
    embedding[at[0], 1], embedding[at[1], 2] = np.nan, np.inf
    return {"embedding": embedding}


def test_it_is_a_mapping(signals):
    assert "codes" in signals
    assert "tokens" not in signals
    assert "tokens" not in signals.at(np.arange(3))
    assert {name: signal.name for name, signal in signals.items()} == {name: name for name in signals}
    with pytest.raises(ValueError, match=r"no signal 'tokens' in .*; there are alignment, codes, embedding"):
        signals["tokens"]


def test_what_is_not_there(tmp_path, values, monkeypatch):
    monkeypatch.setattr(store, "PART_ROWS", 30)
    signals = Signals(tmp_path / "signals", N)
    assert signals.missing() == [0, 1, 2, 3]
    assert list(signals) == []
    assert "codes" not in signals
    with pytest.raises(ValueError, match=r"no signal 'codes' in .*; there are none"):
        signals["codes"]
    signals.write_part(2, {name: array[60:90] for name, array in values.items()}, {})
    assert signals.missing() == [0, 1, 3]
    fill(signals, values)
    assert signals.missing() == []


def test_constants(signals):
    codebook = np.arange(12, dtype=np.float32).reshape(4, 3)
    with pytest.raises(ValueError, match=r"has no codebook; a VQ-VLM has \(model=vqvlm\)"):
        signals.constant("codebook")
    signals.write_constant("codebook", codebook)
    assert np.array_equal(signals.constant("codebook"), codebook)
    assert np.array_equal(signals.at(np.arange(3)).constant("codebook"), codebook)
    assert "codebook" not in signals  # it is no signal of the pairs


def test_errors_are_of_pool_rows(tmp_path, values, monkeypatch):
    monkeypatch.setattr(store, "PART_ROWS", 30)
    signals = fill(Signals(tmp_path, N), values, {0: {4: "missing file"}, 3: {91: "trüncated", 95: "empty"}})
    assert signals.errors() == {4: "missing file", 91: "trüncated", 95: "empty"}


def test_a_part_is_whole_or_not_there(tmp_path, values, monkeypatch):
    signals, save, calls = Signals(tmp_path / "signals", N), np.save, []

    def fail(file, array):
        calls.append(file)
        if len(calls) == 2:
            raise OSError("no space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        signals.write_part(0, values, {})
    assert signals.missing() == [0]
    signals.write_part(0, values, {})
    assert np.array_equal(signals["codes"].read(), values["codes"])
    assert [path.name for path in signals.folder.iterdir()] == ["part-00000"]


def test_who_comes_second_leaves_the_first_ones_part(tmp_path, values):
    """Two processes that made the same part."""
    signals = Signals(tmp_path, N)
    signals.write_part(0, values, {})
    before = {file.name: file.stat().st_ino for file in signals.part(0).iterdir()}
    signals.write_part(0, values, {})
    assert {file.name: file.stat().st_ino for file in signals.part(0).iterdir()} == before
    assert [path.name for path in Path(tmp_path).iterdir()] == ["part-00000"]
