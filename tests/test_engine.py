import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tldr import engine
from tldr.engine import Engine, Local, Ray

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@dataclass
class Squares:
    """Tells of each part its square, and who did it; leaves a file for each time that it was opened."""

    folder: Path

    def open(self, device: str, peers: int = 1) -> Callable[[Sequence[int]], list[tuple[int, str, int]]]:
        (self.folder / f"{os.getpid()}-{len(os.listdir(self.folder))}").touch()
        return lambda parts: [(part**2, device, os.getpid()) for part in parts]


class Refusing(Squares):
    def open(self, device: str, peers: int = 1) -> Callable[[Sequence[int]], list[tuple[int, str, int]]]:
        def work(parts: Sequence[int]) -> list[tuple[int, str, int]]:
            if 5 in parts:
                raise ValueError("part 5 is no good")
            return []

        return work


class Unopened(Squares):
    def __setstate__(self, state):
        raise ValueError("cannot be opened")


@dataclass
class Waiting(Squares):
    """Comes to no end, but for the second worker, where only the ``first`` waits."""

    first: bool = False

    def open(self, device: str, peers: int = 1) -> Callable[[Sequence[int]], list[tuple[int, str, int]]]:
        if self.first and os.listdir(self.folder):
            raise ValueError("the other one fails")
        (self.folder / str(os.getpid())).touch()
        time.sleep(600)
        raise AssertionError


@dataclass
class Dying(Squares):
    """Goes without a word, ``often``."""

    often: int = 1

    def open(self, device: str, peers: int = 1) -> Callable[[Sequence[int]], list[tuple[int, str, int]]]:
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
    with pytest.raises(RuntimeError, match=r"one of 2 processes died, .* fewer engine\.workers, each has more"):
        done(Local(2), Dying(tmp_path, often=9), range(9))


def test_what_goes_wrong_with_the_task_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened"):
        done(Local(2), Unopened(tmp_path), range(9))


def test_nobody_waits_for_the_others(tmp_path):
    start = time.monotonic()
    with pytest.raises(ValueError, match="the other one fails"):
        done(Local(2), Waiting(tmp_path, first=True), range(9))
    assert time.monotonic() - start < 120  # the first would take 600 seconds


def test_processes_end_with_who_began_them(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import torch
from tests.test_engine import Waiting, done
from tldr.engine import Local
if __name__ == "__main__":
    done(Local(2), Waiting(Path({str(tmp_path)!r})), range(2))
"""
    (tmp_path / "run.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py")])
    pids = []
    while len(pids) < 2:
        assert parent.poll() is None
        pids = [int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()]
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "they are still there"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("workers", "device", "taken"),
    [(None, "cuda", ["cuda:0", "cuda:1"]), (3, "cuda", ["cuda:0", "cuda:1", "cuda:0"]), (2, "cuda:1", ["cuda:1"] * 2),
     (2, "cpu", ["cpu"] * 2)],
)  # fmt: skip
def test_processes_take_turns_with_the_gpus(tmp_path, monkeypatch, workers, device, taken):
    began = []

    def executor(*given):
        began.append(given)
        raise NotImplementedError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engine, "ProcessPoolExecutor", executor)
    with pytest.raises(NotImplementedError):
        done(Local(workers), Squares(tmp_path), range(9), torch.device(device))
    ((count, _, _, (_, devices, _, peers)),) = began
    assert count == peers == len(taken)
    assert [devices.get() for _ in taken] == taken


@pytest.mark.parametrize(
    ("workers", "device", "alone"),
    [(1, "cpu", True), (2, "cpu", False), (None, "cpu", True), (1, "cuda", True), (None, "cuda", False),
     (None, "cuda:1", True)],
)  # fmt: skip
def test_who_is_alone(workers, device, alone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Local(workers).alone(torch.device(device)) is alone


@pytest.mark.parametrize("workers", [1, 3, 200])
def test_parts_are_handed_out_in_shares(workers):
    for count in (1, 127, 128, 129, 9766):
        shares = engine._shares(range(count), workers)
        assert [part for share in shares for part in share] == list(range(count))
        assert max(map(len, shares)) <= engine.LARGEST
        assert len(shares) >= min(count, engine.SHARES * workers)


@pytest.mark.parametrize(
    ("cpus", "owned", "gpus", "room"),
    [(8, 0, 0, 8), (8, 2, 1, 2), (1, 2, 1, 1), (8, 2, 0.25, 8), (9, 2, 0.4, 4), (8, 3, 2, 1), (8, 0, 1, 0)],
)
def test_a_machine_has_room_for(cpus, owned, gpus, room):
    assert engine._room({"CPU": cpus, "GPU": owned}, gpus) == room


def test_numbers_that_make_no_sense_are_refused():
    kinds: list[Any] = [Local, Ray]
    for kind in kinds:
        with pytest.raises(ValueError, match=r"engine\.workers=0 must be at least 1"):
            kind(workers=0)
    with pytest.raises(ValueError, match=r"engine\.gpus=-1"):
        Ray(gpus=-1)


# ------------------------------------------------------------------------------------------------ a Ray cluster


def test_what_a_cluster_lacks_is_named(tmp_path, monkeypatch):  # before one runs for the others
    with pytest.raises(ValueError, match=r"room for 0 workers with engine\.gpus=1"):
        done(Ray(address="local", gpus=1), Squares(tmp_path), range(3))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"no Ray cluster at engine\.address=auto: start one with `ray start --head`"):
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


def test_what_goes_wrong_with_a_workers_task_is_raised_here(ray, tmp_path):
    with pytest.raises(ValueError, match="cannot be opened"):
        done(ray, Unopened(tmp_path), range(9))


def test_shares_do_not_wait_for_a_worker_without_room(ray, tmp_path):
    """Another job has a CPU of the cluster: one of two workers does all."""
    library: Any = importlib.import_module("ray")
    other = library.remote(num_cpus=1)(Squares).remote(tmp_path)
    library.get(other.open.remote("cpu"))
    told = done(Ray(workers=2), Squares(tmp_path), range(9))
    assert sorted(square for square, _, _ in told) == [part**2 for part in range(9)]
    assert len({worker for _, _, worker in told}) == 1
    library.kill(other)


def test_a_worker_that_goes_begins_anew(ray, tmp_path):
    told = done(ray, Dying(tmp_path, often=2), range(9))
    assert sorted(square for square, _, _ in told) == [part**2 for part in range(9)]
