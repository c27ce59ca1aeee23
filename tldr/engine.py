"""Where long work on a pool is done: in this process, in several of this machine, or by the workers of a Ray cluster.

A `Task` is cut into parts that do not depend on each other, each of which leaves what it makes in a folder, whole or
not at all. So a part may be done again, by whoever is there, and work that was killed goes on with what is missing.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol

import torch

Work = Callable[[Sequence[int]], Any]
SHARES = 128  # in which parts are handed out: several for each worker, that none waits long for the last
GONE = (
    "has gone, perhaps for want of memory. What was done is kept, and the same command goes on with the rest; "
    "a lower batch_size, or fewer engine.workers, leave more to each"
)


class Task(Protocol):
    """Work that can be pickled."""

    def open(self, device: str) -> Work:
        """What does some parts on ``device`` (``cpu``, ``cuda:1``), and returns what there is to tell of them."""
        ...


class Engine(ABC):
    """``workers`` are so many processes; None: one for each GPU."""

    def __init__(self, workers: int | None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"engine.workers={workers}; at least 1, or null for one on each GPU")
        self.workers = workers

    @abstractmethod
    def alone(self, device: torch.device) -> bool:
        """Is the work on ``device`` for the process that asks, without others?"""

    @abstractmethod
    def run(self, task: Task, parts: Sequence[int], *, device: torch.device) -> Iterator[Any]:
        """What ``task`` tells of every share of ``parts``, as they are done. Raises what a worker raised, and
        RuntimeError where one has gone."""


class Local(Engine):
    """Processes of this machine. None: one for each GPU, if the device is any of them, else the one that asks."""

    def __init__(self, workers: int | None = 1) -> None:
        super().__init__(workers)

    def alone(self, device: torch.device) -> bool:
        """Unless several were asked for."""
        return self._count(device) == 1

    def _count(self, device: torch.device) -> int:
        gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
        return self.workers or gpus

    def run(self, task: Task, parts: Sequence[int], *, device: torch.device) -> Iterator[Any]:
        """In new processes, which take turns with the GPUs unless ``device`` names one of them."""
        shares = _shares(parts)
        count = min(self._count(device), len(shares))
        if not count:
            return
        context = get_context("spawn")  # a fork would share CUDA and locks
        devices, threads = context.SimpleQueue(), max(1, torch.get_num_threads() // count)
        for number in range(count):
            several = device.type == "cuda" and device.index is None
            devices.put(f"cuda:{number % torch.cuda.device_count()}" if several else str(device))
        with ProcessPoolExecutor(count, context, _begin, (task, devices, threads)) as executor:
            futures = [executor.submit(_work, share) for share in shares]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(f"one of {count} processes {GONE}") from error
            finally:
                executor.shutdown(cancel_futures=True)


class Ray(Engine):
    """The workers of the Ray cluster at ``address`` (``auto``: the one that runs; ``local``: one that begins and ends
    with the work), each with ``gpus`` (None: 1, where the cluster has any; 0: a CPU), and None: as many as there is
    room for. All its machines see the cache and the pictures by the same names. A worker that goes begins anew, on
    another machine if need be, and so does its share."""

    def __init__(self, address: str = "auto", workers: int | None = None, gpus: float | None = None) -> None:
        super().__init__(workers)
        if gpus is not None and gpus < 0:
            raise ValueError(f"engine.gpus={gpus}: how much of a GPU each worker has, 1, 0.5 or 0")
        self.address, self.gpus = address, gpus

    def alone(self, device: torch.device) -> bool:
        """Never."""
        return False

    def run(self, task: Task, parts: Sequence[int], *, device: torch.device) -> Iterator[Any]:
        """By actors, which ``device`` says nothing of: it is one of this machine."""
        shares = _shares(parts)
        with self._cluster() as ray:
            has = ray.cluster_resources()
            gpus = min(1.0, has.get("GPU", 0)) if self.gpus is None else self.gpus
            room = has.get("GPU", 0) / gpus if gpus else has["CPU"]
            if room < (self.workers or 1):
                raise ValueError(f"the cluster has room for {room:g} workers with engine.gpus={gpus:g}: it has {has}")
            count = min(self.workers or int(room), len(shares))
            actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_Actor)
            shared = ray.put(task)
            pool = ray.util.ActorPool(
                [actor.remote(shared, "cuda" if gpus else "cpu", os.getcwd()) for _ in range(count)]
            )
            try:
                yield from pool.map_unordered(lambda worker, share: worker.work.remote(share), shares)
            except ray.exceptions.RayActorError as error:
                raise RuntimeError(f"one of {count} workers {GONE}: {error}") from error

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = importlib.import_module("ray")
            importlib.import_module("ray.util")
        except ModuleNotFoundError as error:
            raise ValueError("engine=ray wants the package ray: pip install 'tldr-vlp[ray]'") from error
        ours = not ray.is_initialized()
        if ours:
            try:
                ray.init(self.address, include_dashboard=False, log_to_driver=False)
            except ConnectionError as error:
                raise ValueError(
                    f"there is no Ray cluster at engine.address={self.address}: begin one by `ray start --head`, or "
                    "take engine.address=local"
                ) from error
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()


def _shares(parts: Sequence[int]) -> list[Sequence[int]]:
    size = -(-len(parts) // SHARES)
    return [parts[start : start + size] for start in range(0, len(parts), size or 1)]


class _Actor:
    """A worker of Ray's."""

    def __init__(self, task: Task, device: str, home: str) -> None:
        os.chdir(home)  # folders may be named from there
        self.task, self.device = task, device
        self.opened: Work | None = None

    def work(self, share: Sequence[int]) -> Any:
        self.opened = self.opened or self.task.open(self.device)
        return self.opened(share)


_here: list[_Actor] = []  # the worker that a process of `Local`'s is


def _begin(task: Task, devices: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    _here.append(_Actor(task, devices.get(), os.getcwd()))


def _work(share: Sequence[int]) -> Any:
    return _here[0].work(share)
