import importlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tldr import engine
from tldr.engine import Engine, Local, Ray

CPU = torch.device("cpu")


@dataclass
class Squares:
    """Tells of each part its square, and who did it; leaves a file for each time that it was opened."""

    folder: Path

    def open(self, device: str) -> Callable[[Sequence[int]], list[tuple[int, str, int]]]:
        (self.folder / f"{os.getpid()}-{len(os.listdir(self.folder))}").touch()
        return lambda parts: [(part**2, device, os.getpid()) for part in parts]


class Refusing(Squares):
    def open(self, device: str) -> Callable[[Sequence[int]], list[tuple[int, str, int]]]:
        def work(parts: Sequence[int]) -> list[tuple[int, str, int]]:
            if 5 in parts:
                raise ValueError("part 5 is no good")
            return []

        return work


@dataclass
class Dying(Squares):
    """Goes without a word, ``often``."""

    often: int = 1

    def open(self, device: str) -> Callable[[Sequence[int]], list[tuple[int, str, int]]]:
        if len(os.listdir(self.folder)) < self.often:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return lambda parts: [(part**2, device, os.getpid()) for part in parts]


@pytest.fixture(scope="module")
def ray():
    """Two workers of a cluster that runs for all tests."""
    library: Any = importlib.import_module("ray")
    library.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield Ray()
    library.shutdown()


def done(found: Engine, task, parts: Sequence[int], device=CPU) -> list[tuple[int, str, int]]:
    return [told for share in found.run(task, parts, device=device) for told in share]


def check_squares(found: Engine, folder: Path) -> None:
    parts = range(3, 400)
    told = done(found, Squares(folder), parts)
    assert sorted(square for square, _, _ in told) == [part**2 for part in parts]
    assert {device for _, device, _ in told} == {"cpu"}
    workers = {worker for _, _, worker in told}
    assert len(workers) <= 2
    assert os.getpid() not in workers
    assert len(os.listdir(folder)) == len(workers)  # a worker opens its task once
    assert done(found, Squares(folder), []) == []


# ------------------------------------------------------------------------------------------------ processes here


def test_every_part_is_done_once(tmp_path):
    check_squares(Local(2), tmp_path)


def test_what_a_process_raises_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match="part 5 is no good"):
        done(Local(2), Refusing(tmp_path), range(9))


def test_a_process_that_goes_is_spoken_of(tmp_path):
    with pytest.raises(RuntimeError, match=r"one of 2 processes has gone, .* a lower batch_size, or fewer"):
        done(Local(2), Dying(tmp_path, often=9), range(9))


def test_processes_take_turns_with_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert {device for _, device, _ in done(Local(1), Squares(tmp_path), range(4), torch.device("cuda"))} == {"cuda:0"}
    one = torch.device("cuda:1")
    assert {device for _, device, _ in done(Local(2), Squares(tmp_path), range(4), one)} == {"cuda:1"}
    began = [engine.get_context("spawn").SimpleQueue()]
    monkeypatch.setattr(engine, "_begin", lambda *_: None)
    monkeypatch.setattr(engine, "get_context", lambda _: Context(began))
    with pytest.raises(NotImplementedError):
        done(Local(None), Squares(tmp_path), range(4), torch.device("cuda"))
    assert [began[0].get() for _ in range(2)] == ["cuda:0", "cuda:1"]


class Context:
    """Has a queue, and no processes."""

    def __init__(self, queues) -> None:
        self.queues = queues

    def SimpleQueue(self):
        return self.queues[0]

    def __getattr__(self, name):
        raise NotImplementedError(name)


@pytest.mark.parametrize(
    ("workers", "device", "alone"),
    [(1, "cpu", True), (2, "cpu", False), (None, "cpu", True), (1, "cuda", True), (None, "cuda", False),
     (None, "cuda:1", True)],
)  # fmt: skip
def test_who_is_alone(workers, device, alone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Local(workers).alone(torch.device(device)) is alone


def test_parts_are_handed_out_in_shares():
    for count in (1, 127, 128, 129, 1000):
        shares = engine._shares(range(count))
        assert [part for share in shares for part in share] == list(range(count))
        assert len(shares) <= engine.SHARES
        assert len({len(share) for share in shares[:-1]}) <= 1


def test_numbers_that_make_no_sense_are_refused():
    for kind in (Local, Ray):
        with pytest.raises(ValueError, match=r"engine\.workers=0; at least 1"):
            kind(workers=0)
    with pytest.raises(ValueError, match=r"engine\.gpus=-1"):
        Ray(gpus=-1)


# ------------------------------------------------------------------------------------------------ a Ray cluster


def test_what_a_cluster_lacks_is_named(tmp_path, monkeypatch):  # before one runs for the others
    with pytest.raises(ValueError, match=r"room for 0 workers with engine\.gpus=1"):
        done(Ray(address="local", gpus=1), Squares(tmp_path), range(3))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"no Ray cluster at engine\.address=auto: begin one by `ray start --head`"):
        done(Ray(), Squares(tmp_path), range(3))

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(engine.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'tldr-vlp\[ray\]'"):
        done(Ray(), Squares(tmp_path), range(3))


def test_a_cluster_does_every_part_once(ray, tmp_path):
    check_squares(ray, tmp_path)
    assert not ray.alone(CPU)


def test_what_a_worker_raises_is_raised_here(ray, tmp_path):
    with pytest.raises(ValueError, match="part 5 is no good"):
        done(ray, Refusing(tmp_path), range(9))


def test_a_worker_that_goes_begins_anew(ray, tmp_path):
    told = done(ray, Dying(tmp_path, often=2), range(9))
    assert sorted(square for square, _, _ in told) == [part**2 for part in range(9)]
